-- What functions of the extension refer to outside it, where there is such a thing. dev/audit reads this, too.
create schema auth;
create table auth.users (id uuid primary key);
create schema storage;
create table storage.buckets (
    id text primary key, name text, public boolean, file_size_limit bigint, allowed_mime_types text[]
);
create table storage.objects (bucket_id text, name text);
create function storage.foldername(name text) returns text[]
language sql immutable set search_path = pg_catalog, pg_temp
as 'select string_to_array(name, ''/'')';
create publication supabase_realtime;
