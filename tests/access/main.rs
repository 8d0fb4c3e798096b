//! Two tenants: no row of one is seen, changed or guessed by the other, and within one everybody does
//! what `matrix.txt` says and no more.

mod answer;
mod cells;
mod copies;
mod crowd;
mod filling;
mod forced;
mod grants;
mod keys;
mod leaving;
mod matrix;
mod notices;
mod page;
mod plans;
mod sessions;
mod sharing;
mod strangers;
mod whole;
mod world;
