# Sourced by the scripts in dev/: where things lie, and how to speak and fail.

set -euo pipefail
umask 022

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VERSIONS=(15 17 18)
DEBIAN_VERSION=15                # the one taken from Debian's packages; the others are compiled
PGRX_VERSION=0.19.3
# What the private copy of Debian's Postgres has besides.
TREE_PACKAGES=("postgresql-$DEBIAN_VERSION-plpgsql-check" "postgresql-$DEBIAN_VERSION-wal2json"
  "postgresql-$DEBIAN_VERSION-cron")

if [ "$(id -u)" = 0 ]; then
  PGC_CACHE=${PGC_CACHE:-/var/cache/pg_conversation}
else
  PGC_CACHE=${PGC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pg_conversation}
fi
PGC_BUILD=${PGC_BUILD:-$ROOT/target}
case $PGC_BUILD in /*) ;; *) PGC_BUILD=$PWD/$PGC_BUILD ;; esac
CARGO_PGRX=$PGC_CACHE/cargo-pgrx-$PGRX_VERSION/bin/cargo-pgrx
SQLFLUFF=$PGC_CACHE/sqlfluff-3.4.2/bin/sqlfluff
PGSPOT=$PGC_CACHE/pgspot-0.9.4/bin/pgspot
SQUAWK=$PGC_CACHE/squawk-cli-2.70.0/bin/squawk
# PS005, functions without a search_path: the planner inlines no others. pgspot looks at each name in their bodies.
# PS015, views that are replaced: migrate() runs as the owner of the tables, who cannot replace somebody else's.
PGSPOT_IGNORED=(--ignore PS005 --ignore PS015)
pgspot_complaints() { awk '/: $/ { file = $0; next } !/^ ?$|Errors: / { if (file) print file; file = ""; print "  " $0 }'; }
LOGS=$PGC_BUILD/log
PATH=$PGC_CACHE/bin:$PATH        # programs that dev/setup has put there

say() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# step TITLE LOG COMMAND...: one line on the terminal, the rest in a log.
# The command runs in a shell of its own, because errexit is off inside `if`.
step() {
  local title=$1 log=$LOGS/$2 begin=$SECONDS status=0
  shift 2
  mkdir -p "$LOGS"
  printf '%s ... ' "$title"
  set +e
  (set -e; "$@") >"$log" 2>&1 </dev/null
  status=$?
  set -e
  if [ $status != 0 ]; then
    printf 'failed after %s s\n' $((SECONDS - begin))
    tail -n 15 "$log" >&2
    die "$title: failed, the whole log is in $log"
  fi
  printf '%s s\n' $((SECONDS - begin))
}

# Runs a command as the user that may start a Postgres server, which root may not.
# RUST_BACKTRACE makes every Rust error in the server walk its stack: tests and figures would not be those of production.
as_server_user() {
  if [ "$(id -u)" = 0 ]; then
    (cd / && exec runuser -u postgres -- env -u RUST_BACKTRACE HOME=/tmp "$@")
  else
    env -u RUST_BACKTRACE "$@"
  fi
}

server_user() { if [ "$(id -u)" = 0 ]; then echo postgres; fi; }

# Where servers and their files live: the build folder, unless root works in a place
# that user postgres cannot enter (such as root's home).
reachable_dir() {
  local dir=$PGC_BUILD other
  if [ "$(id -u)" = 0 ]; then
    mkdir -p "$dir"
    while [ "$dir" != / ]; do
      if [ $((0$(stat -c %a "$dir") & 1)) = 0 ]; then
        other=/var/tmp/pg_conversation-$(printf %s "$PGC_BUILD" | cksum | cut -d' ' -f1)
        mkdir -p "$other"
        # /var/tmp is everybody's: a folder that another user laid there is not ours.
        [ "$(stat -c %u "$other")" = 0 ] || die "$other belongs to another user: remove it"
        echo "$other"
        return
      fi
      dir=$(dirname "$dir")
    done
  fi
  echo "$PGC_BUILD"
}
PGC_REACH=$(reachable_dir)
TREES=$PGC_REACH/tree
CLUSTERS=$PGC_REACH/cluster

# The private copy of Postgres N that the extension is installed into.
# Debian's paths are kept below it: the binaries find each other by them.
tree_bin() {
  if [ "$1" = "$DEBIAN_VERSION" ]; then
    echo "$TREES/$1/lib/postgresql/$1/bin"
  else
    echo "$TREES/$1/bin"
  fi
}

need_tree() { [ -e "$TREES/$1/.complete" ] || die "no Postgres $1 here yet: run dev/setup $1"; }

check_version() {
  case " ${VERSIONS[*]} " in *" $1 "*) ;; *) die "no Postgres \"$1\" here, only ${VERSIONS[*]}" ;; esac
}

need_rust() {
  command -v cargo >/dev/null && command -v rustc >/dev/null ||
    die "cargo and rustc are missing: install Rust with rustup"
}

# pgrx declares a newer rustc than it needs; a rustc that is new enough gets no flag.
rust_flags() {
  local minor
  minor=$(rustc --version | sed -E 's/^rustc 1\.([0-9]+).*/\1/')
  if [ "$minor" -lt 96 ]; then echo --ignore-rust-version; fi
}

# The libraries of the examples in Python and TypeScript: a folder for each state of their lists.
example_libraries() {
  local list
  case $1 in python) list=requirements.txt ;; typescript) list=package-lock.json ;; esac
  echo "$PGC_CACHE/examples-$1-$(cksum <"$ROOT/examples/$1/$list" | cut -d' ' -f1)"
}

# Settings with which cargo builds for the Postgres of one pg_config.
# PGRX_HOME is private: whatever `cargo pgrx init` left in the user's home has no say.
use_pg_config() {
  export PGRX_HOME=$PGC_BUILD/pgrx-home
  mkdir -p "$PGRX_HOME"
  # Not read, but pgrx is compiled anew each time that it is missing.
  [ -e "$PGRX_HOME/config.toml" ] || echo '[configs]' >"$PGRX_HOME/config.toml"
  export PGRX_PG_CONFIG_PATH=$1
  PGRX_BUILD_FLAGS=$(rust_flags)
  export PGRX_BUILD_FLAGS
}
