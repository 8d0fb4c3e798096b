//! Figures are those of whoever asks, by the days of the tenant, and come from indexes.

mod days;
mod figures;
mod first_token;
mod plans;
mod world;
