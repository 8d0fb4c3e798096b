//! Feedback: its counts are those of its rows, always, and it is for those who read the conversation.

mod agree;
mod dumps;
mod races;
mod reads;
mod rules;
mod world;
