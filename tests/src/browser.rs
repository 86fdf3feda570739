//! Chromium without a window, driven through its DevTools protocol.
//!
//! ```no_run
//! use alknet_tests::Browser;
//!
//! let mut browser = Browser::start(&["the SPKI of the node's certificate".to_owned()]);
//! browser.navigate("https://127.0.0.1:4433/");
//! assert_eq!(browser.evaluate("document.title"), "alknet");
//! browser.screenshot("page.png".as_ref());
//! ```

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use alknet_test_support::deadline;
use data_encoding::BASE64;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::tools::variable;

/// How long the browser may take for anything before a test counts as hung.
const HUNG: Duration = Duration::from_secs(120);

/// The end of a message on the pipe.
const END: u8 = 0;

/// Folder of axe, which checks pages for accessibility.
const AXE_VARIABLE: &str = "ALKNET_TEST_AXE";

/// A running browser with one page. It is ended on drop.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    /// The profile's folder, made only for this browser.
    _profile: TempDir,
    to: File,
    from: Receiver<Value>,
    session: String,
    next: u64,
    events: Vec<Value>,
}

/// A response that the page received from a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedResource {
    /// The resource.
    pub url: String,
    /// `http/1.1`, `h2`, `h3`.
    pub protocol: String,
    /// The status.
    pub status: u64,
}

impl Browser {
    /// Starts it. It accepts certificates whose keys are among `spki`, in the form of [`spki`].
    ///
    /// # Panics
    /// It does not start. The set-up installs it.
    pub fn start(spki: &[String]) -> Self {
        Self::start_with(spki, &[])
    }

    /// The same with further arguments.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_with(spki: &[String], more: &[&str]) -> Self {
        let profile = tempfile::tempdir().expect("a folder for the profile");
        let pipe = |name| profile.path().join(name);
        let (to, from) = (pipe("to"), pipe("from"));
        let made = Command::new("mkfifo").args([&to, &from]).status();
        assert!(made.is_ok_and(|status| status.success()), "no pipes");
        let mut command = Command::new("sh");
        command
            // The browser reads commands from descriptor 3 and writes to 4. It opens no debugging
            // port, so no other process can control it.
            .args([
                "-c",
                r#"to=$1 from=$2; shift 2; exec chromium "$@" 3<"$to" 4>"$from""#,
            ])
            .arg("sh")
            .args([&to, &from])
            .args([
                "--headless=new",
                "--remote-debugging-pipe",
                "--no-first-run",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-component-update",
                "--hide-scrollbars",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!(
                "--ignore-certificate-errors-spki-list={}",
                spki.join(",")
            ))
            .args(more)
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().expect("a shell is part of every system");
        let to = OpenOptions::new().write(true).open(&to);
        let from = File::open(&from).expect("the pipe is ours");
        let mut browser = Self {
            child,
            _profile: profile,
            to: to.expect("the pipe is ours"),
            from: messages(from),
            session: String::new(),
            next: 0,
            events: Vec::new(),
        };
        browser.open_page();
        browser
    }

    fn open_page(&mut self) {
        let page = self.command("Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        let attached = self.command("Target.attachToTarget", &attach);
        self.session = attached["sessionId"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        for domain in ["Page", "Runtime", "Network", "Log"] {
            self.command(&format!("{domain}.enable"), &json!({}));
        }
    }

    /// Opens an address and waits until everything on it is loaded.
    ///
    /// # Panics
    /// It cannot be loaded.
    pub fn navigate(&mut self, url: &str) {
        self.events
            .retain(|event| event["method"] != "Page.loadEventFired");
        let answer = self.command("Page.navigate", &json!({ "url": url }));
        assert!(answer["errorText"].is_null(), "{url}: {answer}");
        self.wait(|event| event["method"] == "Page.loadEventFired");
    }

    /// The value of an expression. For a promise, the value that it resolves to.
    ///
    /// # Panics
    /// It throws.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        match self.try_evaluate(expression) {
            Ok(value) => value,
            Err(error) => panic!("{error}\n{expression}"),
        }
    }

    /// The same for an expression that may throw.
    ///
    /// # Errors
    /// The exception as text.
    pub fn try_evaluate(&mut self, expression: &str) -> Result<Value, String> {
        let evaluate = json!({
            "expression": expression, "awaitPromise": true, "returnByValue": true,
            "userGesture": true, "replMode": true,
        });
        let mut answer = self.command("Runtime.evaluate", &evaluate);
        let exception = &answer["exceptionDetails"];
        if exception.is_null() {
            return Ok(answer["result"]["value"].take());
        }
        let text = exception.pointer("/exception/description");
        Err(text.unwrap_or(exception).to_string())
    }

    /// Sets the size of the page in pixels, and whether the page sees a user who prefers dark
    /// colours.
    pub fn emulate_screen(&mut self, width: u32, height: u32, dark: bool) {
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600,
        });
        self.command("Emulation.setDeviceMetricsOverride", &size);
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        let media = json!({ "features": features });
        self.command("Emulation.setEmulatedMedia", &media);
    }

    /// Sets whether scripts of pages run.
    pub fn scripts(&mut self, run: bool) {
        let disabled = json!({ "value": !run });
        self.command("Emulation.setScriptExecutionDisabled", &disabled);
    }

    /// Writes a picture of the page into a PNG file.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn screenshot(&mut self, file: &Path) {
        let bytes = self.capture(&json!({ "format": "png", "captureBeyondViewport": true }));
        std::fs::write(file, bytes).expect("the file is ours");
    }

    /// The part of the page in the window, from the top, as a PNG of the size set by
    /// [`emulate_screen`](Self::emulate_screen).
    pub fn window(&mut self) -> Vec<u8> {
        self.evaluate("scrollTo(0, 0)");
        self.capture(&json!({ "format": "png" }))
    }

    fn capture(&mut self, how: &Value) -> Vec<u8> {
        let shot = self.command("Page.captureScreenshot", how);
        let data = shot["data"].as_str().unwrap_or_default();
        BASE64.decode(data.as_bytes()).expect("base64")
    }

    /// Sets the time zone that scripts of pages see (`Asia/Tokyo`), and English as their language.
    pub fn zone(&mut self, name: &str) {
        let zone = json!({ "timezoneId": name });
        self.command("Emulation.setTimezoneOverride", &zone);
        let english = json!({ "locale": "en-US" });
        self.command("Emulation.setLocaleOverride", &english);
    }

    /// The accessibility problems of the page by the rules of axe, for users who cannot see it or
    /// use a mouse: each rule with the markup that breaks it.
    ///
    /// # Panics
    /// axe is not installed. The set-up fetches it.
    pub fn barriers(&mut self) -> Value {
        let axe = Path::new(&variable(AXE_VARIABLE)).join("axe.min.js");
        let rules = std::fs::read_to_string(axe).expect("the set-up fetches it");
        // The page's own policy allows no foreign script, but the browser's protocol can inject
        // one.
        self.evaluate(&rules);
        self.evaluate(
            "(await axe.run()).violations.map((one) => \
             one.id + ': ' + one.nodes.map((node) => node.html).join(' '))",
        )
    }

    /// What the page received from servers since the last call.
    pub fn loaded(&mut self) -> Vec<LoadedResource> {
        // Pending events arrive before the answer to this.
        self.evaluate("0");
        let of = |event: &Value| {
            let response = &event["params"]["response"];
            let text = |name: &str| response[name].as_str().unwrap_or_default().to_owned();
            LoadedResource {
                url: text("url"),
                protocol: text("protocol"),
                status: response["status"].as_u64().unwrap_or_default(),
            }
        };
        let is = |event: &Value| event["method"] == "Network.responseReceived";
        let loaded = self
            .events
            .iter()
            .filter(|event| is(event))
            .map(of)
            .collect();
        self.events.retain(|event| !is(event));
        loaded
    }

    /// Events of the protocol with this name so far: `Network.webSocketHandshakeResponseReceived`,
    /// `Log.entryAdded`.
    pub fn events(&mut self, name: &str) -> Vec<Value> {
        self.evaluate("0");
        let named = self.events.iter().filter(|event| event["method"] == name);
        named.map(|event| event["params"].clone()).collect()
    }

    /// Sends any other command of the protocol.
    ///
    /// # Panics
    /// The browser refuses it, or has ended.
    pub fn command(&mut self, method: &str, parameters: &Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = self.session.as_str().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(END);
        self.to.write_all(&bytes).expect("the browser is there");
        let mut answer = self.wait(|event| event["id"] == id);
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].take()
    }

    /// Waits for a matching message among those already received and the next ones. Others are
    /// kept.
    fn wait(&mut self, is: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.events.iter().position(&is) {
            return self.events.remove(at);
        }
        let until = Instant::now() + deadline(HUNG);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.from.recv_timeout(left) {
                Ok(message) if is(&message) => return message,
                Ok(message) => self.events.push(message),
                Err(RecvTimeoutError::Timeout) => panic!("the browser hangs"),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the browser ended: {:?}", self.child.try_wait())
                }
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads messages until the pipe ends.
fn messages(from: File) -> Receiver<Value> {
    let (send, receive) = channel();
    thread::spawn(move || {
        for message in BufReader::new(from).split(END).map_while(Result::ok) {
            let value = serde_json::from_slice(&message).unwrap_or_default();
            if send.send(value).is_err() {
                return;
            }
        }
    });
    receive
}

/// The key of the certificate that a server shows to browsers, in the form for [`Browser::start`]:
/// the SHA-256 of its SubjectPublicKeyInfo in base64. Browsers do not support Ed25519 in
/// certificates, so they get another certificate than other clients.
///
/// # Panics
/// There is no such server, or openssl is not installed.
#[must_use]
pub fn spki(server: SocketAddr) -> String {
    let script = format!(
        "openssl s_client -connect {server} -alpn http/1.1 \
         -sigalgs ECDSA+SHA256:RSA-PSS+SHA256 </dev/null 2>/dev/null \
         | openssl x509 -pubkey -noout | openssl pkey -pubin -outform DER \
         | openssl dgst -sha256 -binary | openssl base64"
    );
    crate::tools::tool_says("sh", &["-c", &script])
        .trim()
        .to_owned()
}
