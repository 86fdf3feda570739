//! Models of metadata services: servers at a port of this host that answer as the vendors'
//! pages say, and refuse a request that does not follow those pages. No real cloud was asked.

// Tests of several programs use this module, each a part of it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use data_encoding::BASE64;

/// The token of the model of EC2.
const TOKEN: &str = "AQAEALH-k7i18JMkK-ORLZQfAa7nkNjQbKwpQPExNHqzk1oL_7eh-A==";

/// The goal state in the documentation of Azure's Linux agent, shortened.
const GOAL_STATE: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n\
<GoalState xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" \
xsi:noNamespaceSchemaLocation=\"goalstate10.xsd\">\n\
  <Version>2012-11-30</Version>\n  <Incarnation>3</Incarnation>\n\
  <Machine>\n    <ExpectedState>Started</ExpectedState>\n    <LBProbePorts>\n      <Port>16001</Port>\n\
    </LBProbePorts>\n  </Machine>\n  <Container>\n\
    <ContainerId>a511aa6d-29e7-4f53-8788-55655dfe848f</ContainerId>\n    <RoleInstanceList>\n\
      <RoleInstance>\n        <InstanceId>f6cd1d7ef1644557b9059345e5ba890c.lars-test-1</InstanceId>\n\
        <State>Started</State>\n      </RoleInstance>\n    </RoleInstanceList>\n  </Container>\n</GoalState>\n";

/// The cloud that a model plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServedCloud {
    Azure,
    DigitalOcean,
    Ec2,
    Gce,
    Hetzner,
    OpenStack,
}

impl ServedCloud {
    pub(crate) const ALL: [Self; 6] = [
        Self::Azure,
        Self::DigitalOcean,
        Self::Ec2,
        Self::Gce,
        Self::Hetzner,
        Self::OpenStack,
    ];

    pub(crate) const fn key(self) -> &'static str {
        match self {
            Self::Azure => "azure",
            Self::DigitalOcean => "digitalocean",
            Self::Ec2 => "ec2",
            Self::Gce => "gce",
            Self::Hetzner => "hetzner",
            Self::OpenStack => "openstack",
        }
    }
}

/// How a service misbehaves, at every path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misbehaviour {
    /// It sends a byte of its header now and then.
    Drips,
    /// It fails the first request, and has no data at the second.
    FailsOnce,
    /// It sends a hundred megabytes.
    Floods,
    /// It sends bytes that are no HTTP.
    Garbage,
    /// It takes the connection and says nothing.
    Hangs,
    /// It has user data, and no tokens.
    NoTokens,
    /// It sends the client to itself.
    Redirects,
}

/// What a model does.
#[derive(Clone, Debug)]
enum ModelRole {
    Serves(ServedCloud, Option<String>),
    Misbehaves(Misbehaviour),
}

/// What a model saw.
#[derive(Debug, Default)]
struct ModelRecord {
    requests: Vec<String>,
    /// Requests that do not follow the vendor's page.
    refusals: Vec<String>,
    report: Option<String>,
}

/// A running model. It ends with this value.
#[derive(Debug)]
pub(crate) struct ModelService {
    address: SocketAddr,
    shared: Arc<ModelState>,
}

#[derive(Debug)]
struct ModelState {
    role: ModelRole,
    seen: Mutex<ModelRecord>,
    sent: AtomicUsize,
    ends: AtomicBool,
}

impl ModelState {
    fn seen(&self) -> MutexGuard<'_, ModelRecord> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ModelService {
    /// The service of `cloud` for a machine with these user data.
    pub(crate) fn serving(cloud: ServedCloud, data: &str) -> Self {
        Self::start(ModelRole::Serves(cloud, Some(data.to_owned())))
    }

    /// The service of `cloud` for a machine without user data.
    pub(crate) fn without_data(cloud: ServedCloud) -> Self {
        Self::start(ModelRole::Serves(cloud, None))
    }

    pub(crate) fn misbehaving(how: Misbehaviour) -> Self {
        Self::start(ModelRole::Misbehaves(how))
    }

    fn start(role: ModelRole) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(ModelState {
            role,
            seen: Mutex::default(),
            sent: AtomicUsize::new(0),
            ends: AtomicBool::new(false),
        });
        let state = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if state.ends.load(Ordering::SeqCst) {
                    return;
                }
                let state = Arc::clone(&state);
                // A client that leaves early is a part of some tests.
                thread::spawn(move || stream.map(|stream| attend(&state, stream)));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Method and path of each request, without the query.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.shared.seen().requests.clone()
    }

    /// Requests that do not follow the vendor's page.
    pub(crate) fn refusals(&self) -> Vec<String> {
        self.shared.seen().refusals.clone()
    }

    /// The report that the machine is ready, if it came.
    pub(crate) fn ready_report(&self) -> Option<String> {
        self.shared.seen().report.clone()
    }

    pub(crate) fn bytes_sent(&self) -> usize {
        self.shared.sent.load(Ordering::SeqCst)
    }
}

impl Drop for ModelService {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        // This wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
    }
}

/// A request of the client.
struct ModelRequest {
    line: String,
    fields: Vec<(String, String)>,
    body: String,
}

impl ModelRequest {
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut reader = BufReader::new(stream);
        let mut next = || {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            Some(line.trim_end().to_owned())
        };
        let line = next()?.strip_suffix(" HTTP/1.1")?.to_owned();
        let mut fields = Vec::new();
        loop {
            let field = next()?;
            if field.is_empty() {
                break;
            }
            let (name, value) = field.split_once(": ")?;
            fields.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let mut asked = Self {
            line,
            fields,
            body: String::new(),
        };
        let length = asked.field("content-length").and_then(|it| it.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body).ok()?;
        asked.body = String::from_utf8(body).ok()?;
        Some(asked)
    }

    fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

fn attend(shared: &ModelState, mut stream: TcpStream) {
    let Some(asked) = ModelRequest::read(&stream) else {
        return;
    };
    let path = asked.line.split('?').next().unwrap_or_default().to_owned();
    let count = {
        let mut seen = shared.seen();
        seen.requests.push(path);
        seen.requests.len()
    };
    match &shared.role {
        ModelRole::Serves(cloud, data) => {
            let answer = serve(shared, *cloud, data.as_deref(), &asked);
            drop(stream.write_all(answer.as_bytes()));
        }
        ModelRole::Misbehaves(how) => misbehave(shared, *how, count, &asked, &mut stream),
    }
    drop(stream.shutdown(Shutdown::Write));
}

fn ok(content: &str) -> String {
    let length = content.len();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{content}"
    )
}

fn refuse(shared: &ModelState, status: &str, why: &str) -> String {
    shared.seen().refusals.push(why.to_owned());
    format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")
}

fn missing() -> String {
    let content = "<html><title>404 - Not Found</title></html>";
    let length = content.len();
    format!("HTTP/1.1 404 Not Found\r\nContent-Length: {length}\r\n\r\n{content}")
}

/// User data as most services give them.
fn plain(data: Option<&str>) -> String {
    data.map_or_else(missing, ok)
}

fn serve(
    shared: &ModelState,
    cloud: ServedCloud,
    data: Option<&str>,
    asked: &ModelRequest,
) -> String {
    match (cloud, asked.line.as_str()) {
        (ServedCloud::Azure, line) => azure(shared, data, line, asked),
        (ServedCloud::DigitalOcean, "GET /metadata/v1/user-data")
        | (ServedCloud::OpenStack, "GET /openstack/latest/user_data") => plain(data),
        // Chunks, as servers write them that do not know the length before.
        (ServedCloud::Hetzner, "GET /hetzner/v1/userdata") => data.map_or_else(missing, |data| {
            let length = data.len();
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{data}\r\n0\r\n\r\n")
        }),
        (ServedCloud::Ec2, "PUT /latest/api/token") => {
            let ttl = asked.field("x-aws-ec2-metadata-token-ttl-seconds");
            let ttl = ttl.and_then(|ttl| ttl.parse().ok());
            match ttl {
                Some(1..=21_600) => ok(TOKEN),
                _ => refuse(shared, "400 Bad Request", "the token's time"),
            }
        }
        (ServedCloud::Ec2, "GET /latest/user-data") => {
            match asked.field("x-aws-ec2-metadata-token") {
                Some(TOKEN) => plain(data),
                _ => refuse(shared, "401 Unauthorized", "no token"),
            }
        }
        (
            ServedCloud::Gce,
            "GET /computeMetadata/v1/instance/attributes/user-data?alt=text",
        ) => {
            if asked.field("metadata-flavor") != Some("Google") {
                return refuse(shared, "403 Forbidden", "no Metadata-Flavor");
            }
            plain(data).replacen("\r\n", "\r\nMetadata-Flavor: Google\r\n", 1)
        }
        (_, line) => refuse(shared, "404 Not Found", line),
    }
}

fn azure(shared: &ModelState, data: Option<&str>, line: &str, asked: &ModelRequest) -> String {
    let has_version = asked.field("x-ms-version") == Some("2012-11-30");
    match line {
        "GET /metadata/instance/compute/userData?api-version=2021-01-01&format=text" => {
            if asked.field("metadata") != Some("true") {
                return refuse(shared, "400 Bad Request", "no Metadata: true");
            }
            ok(&BASE64.encode(data.unwrap_or_default().as_bytes()))
        }
        "GET /machine/?comp=goalstate" if has_version => ok(GOAL_STATE),
        "POST /machine?comp=health" if has_version => {
            shared.seen().report = Some(asked.body.clone());
            ok("")
        }
        line => refuse(shared, "400 Bad Request", line),
    }
}

fn misbehave(
    shared: &ModelState,
    how: Misbehaviour,
    count: usize,
    asked: &ModelRequest,
    stream: &mut TcpStream,
) {
    let answer = match how {
        Misbehaviour::Drips => {
            let letters = b"HTTP/1.1 200 OK\r\nX: "
                .iter()
                .chain(std::iter::repeat(&b'x'));
            for letter in letters {
                if shared.ends.load(Ordering::SeqCst) || stream.write_all(&[*letter]).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(50));
            }
            return;
        }
        Misbehaviour::FailsOnce if count == 1 => {
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".to_owned()
        }
        Misbehaviour::FailsOnce => missing(),
        Misbehaviour::Floods => {
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n"));
            let block = vec![b'#'; 1 << 20];
            for _ in 0..100 {
                if stream.write_all(&block).is_err() {
                    return;
                }
                shared.sent.fetch_add(block.len(), Ordering::SeqCst);
            }
            return;
        }
        Misbehaviour::Garbage => "\u{0}\u{7f}garbage\r\n\r\n".to_owned(),
        Misbehaviour::Hangs => {
            // The read ends when the client leaves.
            let mut nothing = [0];
            drop(stream.read(&mut nothing));
            return;
        }
        Misbehaviour::NoTokens if asked.line.starts_with("PUT") => missing(),
        Misbehaviour::NoTokens => ok("version = 1\n"),
        Misbehaviour::Redirects => {
            "HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n".to_owned()
        }
    };
    drop(stream.write_all(answer.as_bytes()));
}
