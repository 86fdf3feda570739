//! PID 1 of the appliance.

pub mod console;
pub mod control;

/// Runs the machine until it is switched off.
pub fn run() -> ! {
    loop {
        std::thread::park();
    }
}
