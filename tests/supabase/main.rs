//! A deployment in the manner of Supabase: its roles, its schemas, the statements its clients send.

mod browser;
mod rest;
mod stack;
