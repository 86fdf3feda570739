//! Servers by other authors, or made with other languages' own libraries: programs of
//! `tests/clients`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::pebble::PebbleAddress;
use crate::tools::{client, variable};

/// A server in a separate process, on a port of this host's own address. It is ended on drop.
#[derive(Debug)]
pub struct HostServer {
    child: Child,
    port: u16,
}

impl HostServer {
    /// An API that `api.yaml` describes, on this port. 0 means a free port. With a token file, the
    /// server serves parts of the API only to clients that send the token in the file.
    ///
    /// # Panics
    /// It does not serve.
    pub fn api(port: u16, token_file: Option<&str>) -> Self {
        let mut command = Command::new("python3");
        command.arg(client("api.py"));
        Self::start(command, port, token_file)
    }

    /// The Model Context Protocol as its Python kit implements it, in the same way.
    ///
    /// # Panics
    /// It does not serve.
    pub fn mcp(port: u16, token_file: Option<&str>) -> Self {
        let mut command = Command::new("python3");
        // Only its own packages.
        command.arg("-S").arg(client("mcp_server.py"));
        command.env("PYTHONPATH", variable("ALKNET_TEST_MCP_PYTHON"));
        Self::start(command, port, token_file)
    }

    /// An API and tools whose schemas attack their importers.
    ///
    /// # Panics
    /// It does not serve.
    pub fn bombs() -> Self {
        let mut command = Command::new("python3");
        command.arg(client("bombs.py"));
        Self::start(command, 0, None)
    }

    /// An API and tools whose answers are lists of short values.
    ///
    /// # Panics
    /// It does not serve.
    pub fn trees() -> Self {
        let mut command = Command::new("python3");
        command.arg(client("trees.py"));
        Self::start(command, 0, None)
    }

    /// The files of this folder, over HTTPS with the certificate of the authority's own server.
    ///
    /// # Panics
    /// It does not serve.
    pub fn files(folder: &Path, authority: &PebbleAddress) -> Self {
        let mut command = Command::new("python3");
        command
            .arg(client("files.py"))
            .args(authority.server_files())
            .current_dir(folder);
        Self::start(command, 0, None)
    }

    fn start(mut command: Command, port: u16, token_file: Option<&str>) -> Self {
        command.arg(port.to_string());
        if let Some(file) = token_file {
            command.args(["--token-file", file]);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("the set-up installs Python");
        let output = child.stdout.take().expect("it was asked for above");
        let mut line = String::new();
        let read = BufReader::new(output).read_line(&mut line);
        read.expect("it says its port");
        let port = line.trim().parse();
        let port = port.unwrap_or_else(|error| panic!("{error}: no port: {line:?}"));
        Self { child, port }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A URL on this host.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

impl Drop for HostServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
