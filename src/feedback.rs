//! What people think of messages.
