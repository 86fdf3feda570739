//! The program for GPUs, which this executable has appended to its end (`docs/driver.md`).

use std::io;

use alknet_embedded_exe::{EmbeddedExe, EmbeddedExeError, this_executable};
use alknet_worker::SealedMemfd;

/// Unpacks the program into sealed memory, from which the kernel can execute it.
///
/// # Errors
/// [`EmbeddedExeError::None`] if this executable has no such program.
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
