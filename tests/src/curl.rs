//! curl, with arguments that no other user of this host can read.
//!
//! Every user of the host can read the arguments of all programs in `/proc`, and an argument may be
//! the token of a node's administrator. So curl reads its arguments from its standard input.

use std::io::Write;
use std::process::{Child, Command, Output, Stdio};

/// Longer values remain arguments: curl 7.88 accepts 100 KiB on a line of its settings, and the
/// kernel 128 KiB in an argument. No token is that long.
const VALUE_BYTES: usize = 64 << 10;

/// A run of curl that is being prepared.
#[derive(Debug)]
pub struct Curl {
    command: Command,
    settings: String,
}

impl Curl {
    /// With options as on a command line, each before its value, and nothing else: an address is
    /// the value of `--url`. A value does not begin with a hyphen, unless a digit or nothing
    /// follows it.
    #[must_use]
    pub fn new(arguments: &[&str]) -> Self {
        let mut command = Command::new("curl");
        command.args(["--config", "-"]);
        let mut settings = String::new();
        let mut rest = arguments.iter().copied().peekable();
        while let Some(option) = rest.next() {
            match rest.next_if(|next| is_value(next)) {
                None => settings += &format!("{option}\n"),
                // For an empty value in its settings, curl reports that the value is missing.
                Some(value) if value.is_empty() || value.len() > VALUE_BYTES => {
                    command.args([option, value]);
                }
                Some(value) => settings += &format!("{option} {}\n", quoted(value)),
            }
        }
        Self { command, settings }
    }

    /// Starts curl with its standard output as `output`.
    ///
    /// # Panics
    /// curl is not installed.
    #[must_use]
    pub fn start(mut self, output: Stdio) -> Child {
        let command = self.command.stdin(Stdio::piped()).stdout(output);
        let mut curl = command.spawn().expect("curl is installed by the set-up");
        let mut input = curl.stdin.take().expect("it was asked for above");
        // If curl rejects an option of its arguments, it ends before it reads. Its error message
        // then matters more.
        let _ = input.write_all(self.settings.as_bytes());
        curl
    }

    /// Runs it to its end, and returns all output.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    pub fn output(mut self) -> Output {
        self.command.stderr(Stdio::piped());
        let curl = self.start(Stdio::piped());
        curl.wait_with_output().expect("it is our child")
    }

    /// Runs it to its end, which must be a success, and returns its output.
    ///
    /// # Panics
    /// It fails or is not installed.
    pub fn says(self) -> String {
        let output = self.output();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(output.status.success(), "curl: {text}");
        text
    }
}

fn is_value(argument: &str) -> bool {
    let rest = argument.strip_prefix('-');
    rest.and_then(|rest| rest.chars().next())
        .is_none_or(|first| rest.is_none() || first.is_ascii_digit())
}

/// A value in the syntax of curl's settings.
fn quoted(value: &str) -> String {
    let mut quoted = String::from("\"");
    for character in value.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted += "\\n",
            '\r' => quoted += "\\r",
            _ => quoted.push(character),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread;

    use super::*;

    /// Reads what every user may read while curl waits for its answer.
    #[test]
    fn a_token_is_not_among_the_arguments_and_is_in_the_request() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let url = format!("http://{}/x", server.local_addr().expect("it is bound"));
        let header = "Authorization: Bearer alk_\"secret\\";
        let body = "{\"a\": \"line\r\n\t#\"}";
        let mut curl = Curl::new(&[
            "--silent", "--json", body, "--header", header, "--header", "Empty;", "--range",
            "-500", "--url", &url,
        ])
        .start(Stdio::null());
        let (mut asked, _) = server.accept().expect("curl asks");
        let file = format!("/proc/{}/cmdline", curl.id());
        let arguments = std::fs::read_to_string(file).expect("it waits for the answer");
        assert!(arguments.starts_with("curl\0"), "{arguments:?}");
        assert!(!arguments.contains("secret"), "{arguments:?}");
        let mut text = String::new();
        while !text.ends_with(body) {
            let mut some = [0; 1024];
            let read = asked.read(&mut some).expect("it sends");
            assert!(read > 0, "{text:?}");
            text += &String::from_utf8_lossy(&some[..read]);
        }
        for line in [header, "Empty:"] {
            assert!(
                text.contains(&format!("\r\n{line}\r\n")),
                "{line} in {text:?}"
            );
        }
        assert!(text.contains("bytes -500/"), "{text:?}");
        drop(asked);
        curl.wait().expect("it is our child");
    }

    #[test]
    fn values_that_are_empty_or_long_arrive() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let url = format!("http://{}/x", server.local_addr().expect("it is bound"));
        let long = "x".repeat(VALUE_BYTES + 1);
        for body in ["", &long] {
            let length = format!("\r\nContent-Length: {}\r\n", body.len());
            let asks = [
                "--silent",
                "--data-binary",
                body,
                "--header",
                "Expect:",
                "--url",
                &url,
            ];
            let curl = Curl::new(&asks);
            let answer = thread::scope(|scope| {
                let ran = scope.spawn(|| curl.output());
                let (mut asked, _) = server.accept().expect("curl asks");
                let mut head = vec![0; 4096];
                let read = asked.read(&mut head).expect("it sends");
                let head = String::from_utf8_lossy(&head[..read]).into_owned();
                assert!(head.contains(&length), "{head:?}");
                drop(asked);
                ran.join().expect("no panic")
            });
            assert!(!answer.status.success(), "it got no answer");
        }
    }
}
