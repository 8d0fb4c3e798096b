//! Many sessions at once: numbers without a gap, names given once, answers that are never stale.

mod crowd;
mod edits;
mod frame;
mod identity;
mod many;
mod members;
mod names;
mod numbers;
mod places;
mod quarrel;
mod queues;
mod upheavals;
