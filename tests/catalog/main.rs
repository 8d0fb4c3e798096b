//! What the catalog of an installed extension must say, for every table, policy and function there is.
