//! Vulkan without a loader: Mesa's drivers, linked into the program.
//!
//! The usual way to a GPU is a loader that finds drivers as files and opens them. A static program in
//! an empty root has neither. Here each driver is one archive with a single way in, and this crate
//! makes a [`wgpu::Instance`] over it:
//!
//! ```no_run
//! let found = alknet_vulkan::adapters(alknet_vulkan::instances());
//! if let Some(best) = found.adapters.first() {
//!     println!("{} by {}", best.info.name, best.driver);
//! }
//! ```
//!
//! Which drivers are linked is decided when the program is built (`docs/driver.md`); there may be none.
//! The code that a driver generates at run time calls a few functions of the C library; `dynamic`
//! resolves their names, since a static program has no table of them.

#[cfg(target_feature = "crt-static")]
mod dynamic;
mod find;
mod instance;
#[cfg(target_feature = "crt-static")]
mod symbols;

pub use find::{AdapterInventory, DriverAdapter, adapters};
pub use instance::{DRIVERS, Error, LinkedDriver, LinkedInstance, instance, instances};

/// Exit code of a process whose generated code asked for a function that is not there. Its name goes to
/// standard error first. Going on would be a jump to address 0.
pub const UNKNOWN_SYMBOL_EXIT: i32 = 70;

/// The address under which generated code finds a function of the C library; a name that it does not
/// find ends the process with [`UNKNOWN_SYMBOL_EXIT`].
///
/// For tests and for people who wonder; drivers come here by themselves.
#[cfg(target_feature = "crt-static")]
#[must_use]
pub fn resolve(name: &std::ffi::CStr) -> usize {
    dynamic::resolve_or_end(name).addr()
}
