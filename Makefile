# The work is done by the scripts in dev/; this is their table of contents.

PG_CONFIG ?= pg_config
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup demo psql stop test test-15 examples lint bench docs install package clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-10s %s\n", $$1, $$2 }'

setup: ## fetch everything that building and testing need
	@dev/setup

demo: ## build for Postgres 15, start a private server, walk through the extension
	@dev/setup 15
	@dev/build 15
	@dev/cluster start demo 15
	@dev/demo

psql: ## psql in the demo database
	@dev/cluster start demo 15
	@dev/cluster psql demo -d demo

stop: ## stop the private servers
	@dev/cluster stop-all

test: ## lint, build and test, all versions of Postgres
	@dev/test

test-15: ## build and test on Postgres 15 alone, no lint
	@PGC_VERSIONS=15 dev/test --

examples: ## run the examples of docs/streaming.md against a private server
	@dev/setup 15 examples
	@dev/build 15
	@dev/examples

lint: ## rustfmt, clippy, SQL lint, checks of what is installed
	@dev/setup 15 lint
	@dev/lint
	@dev/build 15
	@dev/audit

bench: ## measure
	@dev/setup 15 bench
	@dev/build 15
	@dev/bench

docs: ## regenerate docs/reference.md from the catalog
	@dev/setup 15
	@dev/build 15
	@dev/reference

install: ## build and install into the Postgres of PG_CONFIG=...
	@dev/install install '$(PG_CONFIG)'

package: ## build an archive for the Postgres of PG_CONFIG=...
	@dev/install package '$(PG_CONFIG)'

clean: ## stop the private servers, delete the build folder
	@dev/clean
