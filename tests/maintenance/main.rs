//! What is done from time to time, by whom, and what that survives.

mod calls;
mod house;
mod jobs;
mod launcher;
mod notes;
mod schedule;
mod strangers;
