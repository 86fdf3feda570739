//! The program for GPUs, which this executable carries behind its end (`docs/driver.md`).

use std::io;

use alknet_embedded_exe::{EmbeddedExe, EmbeddedExeError, this_executable};
use alknet_worker::SealedMemfd;

/// Unpacks it into sealed memory, from which it can be executed.
///
/// # Errors
/// [`EmbeddedExeError::None`] if this executable carries none.
pub(crate) fn program() -> Result<SealedMemfd, EmbeddedExeError> {
    let file = this_executable()?;
    let carried = EmbeddedExe::find(&file)?;
    let sealed =
        SealedMemfd::program(|memory| carried.unpack(&file, memory).map_err(io::Error::other));
    sealed.map_err(|error| match error.downcast() {
        Ok(carried) => carried,
        Err(error) => error.into(),
    })
}
