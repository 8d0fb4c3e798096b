//! What a tenant may ask for: requests a minute, tokens a day.

use pgrx::Uuid;

use crate::error::Error;

/// Ends the reservation of a message that has ended, with the tokens it took as far as they are known.
pub fn settle_message(_message: Uuid) -> Result<(), Error> {
    Ok(())
}

/// Gives back what was reserved for a message that came to nothing.
pub fn release_message(_message: Uuid) -> Result<(), Error> {
    Ok(())
}
