//! The one binary: PID 1, node and command line, by its verb.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    if std::process::id() == 1 {
        alknet_init::run();
    }
}
