//! Vulkan without a loader: Mesa's drivers, linked into the program.
//!
//! The usual way to a GPU is a loader that finds drivers as files and opens them. A static program in an empty root
//! has neither. In this project each driver is one archive with a single entry point, and this crate makes a
//! [`wgpu::Instance`] over it:
//!
//! ```no_run
//! let found = alknet_vulkan::adapters(alknet_vulkan::instances());
//! if let Some(best) = found.adapters.first() {
//!     println!("{} by {}", best.info.name, best.driver);
//! }
//! ```
//!
//! The build decides which drivers are linked (`docs/driver.md`); there may be none. The code that a driver generates
//! at run time calls a few functions of the C library; `dynamic` resolves their names, because a static program has
//! no symbol table for them.

#[cfg(target_feature = "crt-static")]
mod dynamic;
mod find;
mod instance;
#[cfg(target_feature = "crt-static")]
mod symbols;

pub use find::{AdapterInventory, DriverAdapter, adapters};
pub use instance::{DRIVERS, Error, LinkedDriver, LinkedInstance, instance, instances};

/// Exit code of a process whose generated code called a function that does not exist. The process first writes the
/// function's name to standard error. Without the exit it would jump to address 0.
pub const UNKNOWN_SYMBOL_EXIT: i32 = 70;

/// The address at which generated code finds a function of the C library; for an unknown name the process ends with
/// [`UNKNOWN_SYMBOL_EXIT`].
///
/// For tests and diagnosis; drivers call `dlsym` themselves.
#[cfg(target_feature = "crt-static")]
#[must_use]
pub fn resolve(name: &std::ffi::CStr) -> usize {
    dynamic::resolve_or_end(name).addr()
}
