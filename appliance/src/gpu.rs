//! The program for GPUs, which this executable carries behind its end (`docs/driver.md`).

use std::io;

use alknet_carried::{Carried, CarriedError, this_executable};
use alknet_worker::Sealed;

/// Unpacks it into sealed memory, from which it can be executed.
///
/// # Errors
/// [`CarriedError::None`] if this executable carries none.
pub(crate) fn program() -> Result<Sealed, CarriedError> {
    let file = this_executable()?;
    let carried = Carried::find(&file)?;
    let sealed = Sealed::program(|memory| carried.unpack(&file, memory).map_err(io::Error::other));
    sealed.map_err(|error| match error.downcast() {
        Ok(carried) => carried,
        Err(error) => error.into(),
    })
}
