//! Figures for those who watch the database.
