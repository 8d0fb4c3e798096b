//! A deployment in the manner of Supabase: its roles, its schemas, the statements its clients send.

mod backend;
mod browser;
mod changes;
mod guide;
mod install;
mod link;
mod pool;
mod reader;
mod rest;
mod stack;
mod storage;
