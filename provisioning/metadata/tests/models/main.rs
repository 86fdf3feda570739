//! The client against models of the services, made of the examples that their vendors publish, and
//! against services that misbehave.

mod model;
mod moto;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use alknet_metadata::{MetadataAccess, MetadataError, fetch, report_ready};
use alknet_provisioning::MetadataService;
use alknet_test_support::{deadline, limited};

use model::{Misbehaviour, ModelService, ServedCloud};

const DOCUMENT: &str = "version = 1\n[node]\nname = \"edge-1\"\n";

/// Nothing here takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);
/// The time of a client whose service never answers.
const SHORT: Duration = Duration::from_millis(400);

fn access(at: SocketAddr, time: Duration) -> MetadataAccess {
    MetadataAccess {
        interface: None,
        metadata: at,
        wire_server: at,
        until: Instant::now() + time,
    }
}

fn fetched(
    service: MetadataService,
    model: &ModelService,
) -> Result<Option<String>, MetadataError> {
    let found = fetch(service, &access(model.address(), deadline(PATIENCE)))?;
    Ok(found.map(|found| String::from_utf8(found.to_vec()).expect("text")))
}

#[test]
fn every_service_gives_its_user_data() {
    for cloud in ServedCloud::ALL {
        let model = ModelService::serving(cloud, DOCUMENT);
        let service = MetadataService::from_key(cloud.key()).expect("a service");
        let found = fetched(service, &model).unwrap_or_else(|error| panic!("{service}: {error}"));
        assert_eq!(found.as_deref(), Some(DOCUMENT), "{service}");
        assert_eq!(model.refusals(), Vec::<String>::new(), "{service}");
    }
}

#[test]
fn a_machine_without_user_data_has_none_at_every_service() {
    for cloud in ServedCloud::ALL {
        let model = ModelService::without_data(cloud);
        let service = MetadataService::from_key(cloud.key()).expect("a service");
        let found = fetched(service, &model).unwrap_or_else(|error| panic!("{service}: {error}"));
        assert_eq!(found, None, "{service}");
        // A service also answers a request for a wrong path with a status that means no user data.
        assert_eq!(model.requests(), documented_requests(cloud), "{service}");
        assert_eq!(model.refusals(), Vec::<String>::new(), "{service}");
    }
}

#[test]
fn every_request_is_the_one_that_the_vendor_documents() {
    for cloud in ServedCloud::ALL {
        let model = ModelService::serving(cloud, DOCUMENT);
        let service = MetadataService::from_key(cloud.key()).expect("a service");
        fetched(service, &model).expect("a document");
        assert_eq!(model.requests(), documented_requests(cloud), "{service}");
    }
}

/// Method and path of each request, in order, as the vendor's page has them. The models compare the queries.
const fn documented_requests(cloud: ServedCloud) -> &'static [&'static str] {
    match cloud {
        ServedCloud::Azure => &["GET /metadata/instance/compute/userData"],
        ServedCloud::DigitalOcean => &["GET /metadata/v1/user-data"],
        ServedCloud::Ec2 => &["PUT /latest/api/token", "GET /latest/user-data"],
        ServedCloud::Gce => &["GET /computeMetadata/v1/instance/attributes/user-data"],
        ServedCloud::Hetzner => &["GET /hetzner/v1/userdata"],
        ServedCloud::OpenStack => &["GET /openstack/latest/user_data"],
    }
}

#[test]
fn without_a_token_ec2_is_not_asked_for_user_data() {
    let model = ModelService::misbehaving(Misbehaviour::NoTokens);
    let error = fetched(MetadataService::Ec2, &model).expect_err("no token");
    assert!(error.to_string().contains("IMDSv1 is not used"), "{error}");
    assert_eq!(model.requests(), ["PUT /latest/api/token"]);
}

#[test]
fn a_redirect_is_not_followed() {
    let model = ModelService::misbehaving(Misbehaviour::Redirects);
    let error = fetched(MetadataService::Hetzner, &model).expect_err("a redirect");
    assert!(matches!(error, MetadataError::Redirect(302)), "{error}");
    assert_eq!(model.requests().len(), 1);
}

#[test]
fn a_hundred_megabytes_are_not_read() {
    let model = ModelService::misbehaving(Misbehaviour::Floods);
    let error = fetched(MetadataService::Hetzner, &model).expect_err("too long");
    assert!(error.is_final(), "{error}");
    // The buffers of the two sockets take some of what is not read.
    assert!(model.bytes_sent() < 32 << 20, "{}", model.bytes_sent());
}

#[test]
fn garbage_is_refused_and_a_silent_service_costs_its_time_alone() {
    let model = ModelService::misbehaving(Misbehaviour::Garbage);
    let error = fetched(MetadataService::Hetzner, &model).expect_err("garbage");
    assert!(matches!(error, MetadataError::Response(_)), "{error}");
    for misbehaviour in [Misbehaviour::Hangs, Misbehaviour::Drips] {
        let model = ModelService::misbehaving(misbehaviour);
        let service = MetadataService::Hetzner;
        let error = fetch(service, &access(model.address(), SHORT)).expect_err("silence");
        assert!(matches!(error, MetadataError::Time), "{error}");
    }
}

#[test]
fn a_service_that_fails_for_now_is_asked_again() {
    let model = ModelService::misbehaving(Misbehaviour::FailsOnce);
    let found = fetched(MetadataService::Hetzner, &model).expect("the second time");
    assert_eq!(found, None);
    assert_eq!(model.requests().len(), 2);
}

#[test]
fn azure_gets_the_report_with_the_values_of_its_goal_state() {
    let model = ModelService::without_data(ServedCloud::Azure);
    report_ready(&access(model.address(), deadline(PATIENCE))).expect("a report");
    let report = model.ready_report().expect("it came");
    for part in [
        "<GoalStateIncarnation>3</GoalStateIncarnation>",
        "<ContainerId>a511aa6d-29e7-4f53-8788-55655dfe848f</ContainerId>",
        "<InstanceId>f6cd1d7ef1644557b9059345e5ba890c.lars-test-1</InstanceId>",
        "<State>Ready</State>",
    ] {
        assert!(report.contains(part), "{report}");
    }
    let model = ModelService::misbehaving(Misbehaviour::Garbage);
    let refused = report_ready(&access(model.address(), deadline(PATIENCE)));
    assert!(refused.is_err(), "no goal state");
}

/// A server that this project did not write: that of Python's standard library.
#[test]
fn a_server_of_another_project_is_understood() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(folder.path().join("hetzner")).expect("writable");
    fs::create_dir(folder.path().join("hetzner/v1")).expect("writable");
    fs::write(folder.path().join("hetzner/v1/userdata"), DOCUMENT).expect("writable");
    let mut server = limited(PATIENCE, "python3")
        .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1"])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("python3 is installed");
    let mut line = String::new();
    let output = server.stdout.take().expect("it is piped");
    let mut output = BufReader::new(output);
    output.read_line(&mut line).expect("text");
    // "Serving HTTP on 127.0.0.1 port 40001 (http://127.0.0.1:40001/) ..."
    let port = line
        .split_whitespace()
        .nth(5)
        .and_then(|it| it.parse().ok());
    let port = port.unwrap_or_else(|| panic!("{line:?}"));
    let at = access((Ipv4Addr::LOCALHOST, port).into(), deadline(PATIENCE));
    let found = fetch(MetadataService::Hetzner, &at).expect("a response");
    assert_eq!(found.expect("a document").as_slice(), DOCUMENT.as_bytes());
    let missing = fetch(MetadataService::OpenStack, &at).expect("a response");
    assert_eq!(missing, None);
    server.kill().expect("it runs");
    server.wait().expect("it was killed");
}
