//! The frame: who owns what, what a failed installation leaves, and what doctor sees.

mod doctor;
mod migrations;
mod owner;
mod roles;
mod views;
