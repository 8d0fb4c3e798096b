//! Many sessions at once: numbers without a gap, names given once, answers that are never stale.

mod crowd;
mod frame;
mod identity;
mod names;
mod numbers;
