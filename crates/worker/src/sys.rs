//! All code of this crate that the compiler cannot check: starting a process, mapping memory, the clocks of other
//! threads, signals. The functions are small, and each states its reason.

mod clock;
mod inherited;
mod launch;
mod mapping;
mod memory;
mod signal;
mod socket;

pub(crate) use clock::{ThreadClock, can_run, process_cpu_us};
pub(crate) use inherited::{take_host, with_host_socket};
pub(crate) use launch::{Launch, LaunchedProcess, ProcessIdentity};
pub(crate) use mapping::DescriptorMapping;
pub use memory::give_back_memory;
pub(crate) use memory::{ProcessMemory, release_killed};
pub(crate) use signal::{ABORTED_STATUS, abort_ends_with_a_status, end_now, unblock_all};
pub(crate) use socket::is_all_read;
