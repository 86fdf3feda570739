//! A server of files over HTTP.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The server of Python's own library for the files of a folder, at a free port of 127.0.0.1. A machine on QEMU's own
/// network reaches it at 10.0.2.2. It is ended on drop.
#[derive(Debug)]
pub struct FileServer {
    child: Child,
    port: u16,
}

impl FileServer {
    /// Serves the files of this folder.
    ///
    /// # Panics
    /// It does not serve.
    #[must_use]
    pub fn start(folder: &Path) -> Self {
        let mut child = Command::new("python3")
            .args(["-u", "-m", "http.server", "--bind", "127.0.0.1", "0"])
            .current_dir(folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the set-up installs Python");
        let mut line = String::new();
        let output = child.stdout.take().expect("it was asked for above");
        BufReader::new(output)
            .read_line(&mut line)
            .expect("it says its port");
        // Serving HTTP on 127.0.0.1 port 41234 (http://127.0.0.1:41234/) ...
        let port = line
            .split_whitespace()
            .nth(5)
            .and_then(|port| port.parse().ok());
        let port = port.unwrap_or_else(|| panic!("no port: {line:?}"));
        Self { child, port }
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
