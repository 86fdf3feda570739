//! Answers of metadata services, and goal states of Azure's wire server.

use std::io::{self, Read};

use alknet_core::config::CONFIG_BYTES_MAX;
use alknet_metadata::{GoalState, MetadataResponse, USER_DATA_BYTES_MAX, read_user_data};
use alknet_provisioning::MetadataService;

/// A reader that gives one byte at a time.
struct SlowReader<'a>(&'a [u8]);

impl Read for SlowReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match (self.0.split_first(), buffer.first_mut()) {
            (Some((first, rest)), Some(place)) => {
                *place = *first;
                self.0 = rest;
                Ok(1)
            }
            _ => Ok(0),
        }
    }
}

/// The first byte chooses the service, or the goal state. The rest is what comes from the network.
pub fn metadata(data: &[u8]) -> bool {
    let Some((kind, bytes)) = data.split_first() else {
        return false;
    };
    let services = MetadataService::ALL;
    match services.get(usize::from(*kind) % (services.len() + 1)) {
        Some(service) => user_data(*service, bytes),
        None => goal_state(bytes),
    }
}

fn user_data(service: MetadataService, bytes: &[u8]) -> bool {
    let answer = MetadataResponse::receive(&mut io::Cursor::new(bytes), USER_DATA_BYTES_MAX);
    let slow = MetadataResponse::receive(&mut SlowReader(bytes), USER_DATA_BYTES_MAX);
    assert_eq!(
        answer.as_ref().ok(),
        slow.as_ref().ok(),
        "the parts in which a response comes change it"
    );
    let Ok(answer) = answer else {
        return false;
    };
    assert!((200..600).contains(&answer.status()));
    assert!(answer.body().len() <= USER_DATA_BYTES_MAX.min(bytes.len()));
    match read_user_data(service, &answer) {
        Ok(Some(document)) => {
            assert_eq!(answer.status(), 200);
            assert!((1..=CONFIG_BYTES_MAX).contains(&document.len()));
            assert!(!document.trim_ascii_start().starts_with(b"#cloud-config"));
            true
        }
        Ok(None) => true,
        Err(error) => {
            assert!(!error.to_string().contains('\u{1b}'), "a console obeys it");
            false
        }
    }
}

fn goal_state(bytes: &[u8]) -> bool {
    let Ok(goal) = GoalState::parse(bytes) else {
        return false;
    };
    let report = goal.ready();
    // The values add no element to the report.
    assert_eq!(report.matches('<').count(), 19, "{report}");
    assert!(!report.contains('&'), "{report}");
    true
}
