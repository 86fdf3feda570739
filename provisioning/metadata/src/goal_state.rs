//! The report to Azure's wire server that a machine is ready. Azure gives up a machine of a
//! generalised image that does not report it. The wire server hands out a goal state, an XML
//! document with three values, and takes the report with the same values.

use crate::http::HttpRequest;
use crate::{MetadataAccess, MetadataError};

/// The version of the wire server's protocol, which every request names.
const VERSION: (&str, &str) = ("x-ms-version", "2012-11-30");
/// How a client that is no agent of Azure calls itself.
const AGENT: (&str, &str) = ("x-ms-agent-name", "custom-provisioning");
/// Most bytes of a goal state. One of a machine with many extensions has 5 KB.
const GOAL_STATE_BYTES_MAX: usize = 64 << 10;
/// Most bytes of the response to a report, which is not read.
const REPORT_RESPONSE_BYTES_MAX: usize = 16 << 10;
/// Most elements within each other.
const DEPTH_MAX: usize = 16;
/// Most characters of a value. An id is a UUID, or a UUID and the name of a role.
const VALUE_CHARS_MAX: usize = 256;

const CONTAINER: [&str; 3] = ["GoalState", "Container", "ContainerId"];
const INCARNATION: [&str; 2] = ["GoalState", "Incarnation"];
const INSTANCE: [&str; 5] = [
    "GoalState",
    "Container",
    "RoleInstanceList",
    "RoleInstance",
    "InstanceId",
];

/// The values of a goal state that a report repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoalState {
    container: String,
    incarnation: String,
    instance: String,
}

impl GoalState {
    /// Reads a goal state. `bytes` is untrusted.
    ///
    /// ```
    /// use alknet_metadata::GoalState;
    ///
    /// let text = "<GoalState><Incarnation>1</Incarnation><Container><ContainerId>c</ContainerId>\
    ///     <RoleInstanceList><RoleInstance><InstanceId>i</InstanceId></RoleInstance></RoleInstanceList>\
    ///     </Container></GoalState>";
    /// let report = GoalState::parse(text.as_bytes())?.ready();
    /// assert!(report.contains("<State>Ready</State>"));
    /// # Ok::<(), alknet_metadata::MetadataError>(())
    /// ```
    ///
    /// # Errors
    /// [`MetadataError::GoalState`] names what is missing or malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self, MetadataError> {
        let text = std::str::from_utf8(bytes).map_err(|_| MetadataError::GoalState("UTF-8"))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut values = [None; 3];
        read_elements(text, |path, value| {
            let places: [&[&str]; 3] = [&CONTAINER, &INCARNATION, &INSTANCE];
            for (place, found) in places.iter().zip(&mut values) {
                // The first of several role instances is this machine's.
                if path == *place && found.is_none() {
                    *found = Some(value);
                }
            }
        })
        .ok_or(MetadataError::GoalState("well-formed XML"))?;
        let [container, incarnation, instance] = values;
        let id = |value: Option<&str>, what| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            value
                .filter(|value| (1..=VALUE_CHARS_MAX).contains(&value.len()))
                // The value goes into the report as it is, so it must have no character that
                // means something in XML.
                .filter(|value| value.bytes().all(plain))
                .map(str::to_owned)
                .ok_or(MetadataError::GoalState(what))
        };
        let incarnation = incarnation.filter(|value| value.parse::<u32>().is_ok());
        Ok(Self {
            container: id(container, "a ContainerId")?,
            incarnation: id(incarnation, "an Incarnation")?,
            instance: id(instance, "an InstanceId")?,
        })
    }

    /// The report that the machine is ready.
    #[must_use]
    pub fn ready(&self) -> String {
        let Self {
            container,
            incarnation,
            instance,
        } = self;
        format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<Health>\
             <GoalStateIncarnation>{incarnation}</GoalStateIncarnation>\
             <Container><ContainerId>{container}</ContainerId>\
             <RoleInstanceList><Role><InstanceId>{instance}</InstanceId>\
             <Health><State>Ready</State></Health>\
             </Role></RoleInstanceList></Container></Health>"
        )
    }
}

/// Calls `found` with the path and the text of each element that has text only. `None` if the text
/// is not XML of the kind that the wire server writes: elements, attributes and text, without
/// document types, CDATA and processing instructions behind the first line.
fn read_elements<'a>(text: &'a str, mut found: impl FnMut(&[&'a str], &'a str)) -> Option<()> {
    let mut rest = text.trim_start();
    if let Some(declared) = rest.strip_prefix("<?xml") {
        rest = declared.split_once("?>")?.1;
    }
    let mut path: Vec<&str> = Vec::new();
    let mut has_root = false;
    loop {
        let Some((before, tag)) = rest.split_once('<') else {
            // The end: everything that was opened is closed, and no text follows.
            let is_whole = has_root && path.is_empty() && rest.trim().is_empty();
            return is_whole.then_some(());
        };
        let (tag, behind) = tag.split_once('>')?;
        rest = behind;
        if let Some(name) = tag.strip_prefix('/') {
            if path.last() != Some(&name.trim_end()) {
                return None;
            }
            path.pop();
            continue;
        }
        // Text before a child belongs to an element with children, of which none is wanted.
        if path.is_empty() && (has_root || !before.trim().is_empty()) {
            return None;
        }
        has_root = true;
        let closed = tag.strip_suffix('/');
        let name = closed.unwrap_or(tag);
        // Attributes are skipped. A `>` in the value of one is not understood, and ends in an
        // error, because the element then never ends.
        let name = name.split(|c: char| c.is_ascii_whitespace()).next()?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        if name.is_empty() || !name.bytes().all(plain) || path.len() == DEPTH_MAX {
            return None;
        }
        if closed.is_some() {
            continue;
        }
        path.push(name);
        if let Some((value, end)) = rest.split_once('<')
            && end.starts_with('/')
        {
            found(&path, value.trim());
        }
    }
}

/// Asks for the goal state and reports once.
pub(crate) fn report_once(access: &MetadataAccess) -> Result<(), MetadataError> {
    let question = HttpRequest {
        method: "GET",
        path: "/machine/?comp=goalstate",
        fields: &[VERSION, AGENT],
        body: "",
        bytes_max: GOAL_STATE_BYTES_MAX,
    };
    let response = access.send_request(access.wire_server, &question)?;
    accepted(response.status())?;
    let goal_state = GoalState::parse(response.body())?;
    let report = HttpRequest {
        method: "POST",
        path: "/machine?comp=health",
        fields: &[VERSION, AGENT, ("Content-Type", "text/xml;charset=utf-8")],
        body: &goal_state.ready(),
        bytes_max: REPORT_RESPONSE_BYTES_MAX,
    };
    accepted(access.send_request(access.wire_server, &report)?.status())
}

fn accepted(status: u16) -> Result<(), MetadataError> {
    match status {
        200..300 => Ok(()),
        300..400 => Err(MetadataError::Redirect(status)),
        _ => Err(MetadataError::Status(status)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the wire server writes it.
    const GOAL: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<GoalState xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:noNamespaceSchemaLocation="goalstate10.xsd">
  <Version>2012-11-30</Version>
  <Incarnation>7</Incarnation>
  <Machine>
    <ExpectedState>Started</ExpectedState>
    <StopRolesDeadlineHint>300000</StopRolesDeadlineHint>
  </Machine>
  <Container>
    <ContainerId>c6d5526c-5ac2-4200-b6e2-56f2b70c5ab2</ContainerId>
    <RoleInstanceList>
      <RoleInstance>
        <InstanceId>b61f93d0-e1ed-40b2-b067-22c243233448.MachineRole_IN_0</InstanceId>
        <State>Started</State>
        <Configuration>
          <HostingEnvironmentConfig>http://168.63.129.16:80/machine/c6d5526c?comp=config&amp;type=x</HostingEnvironmentConfig>
          <ConfigName/>
        </Configuration>
      </RoleInstance>
    </RoleInstanceList>
  </Container>
</GoalState>
"#;

    #[test]
    fn the_report_repeats_the_values_of_the_goal_state() {
        let goal = GoalState::parse(GOAL.as_bytes()).expect("a goal state");
        let report = goal.ready();
        for part in [
            "<GoalStateIncarnation>7</GoalStateIncarnation>",
            "<ContainerId>c6d5526c-5ac2-4200-b6e2-56f2b70c5ab2</ContainerId>",
            "<InstanceId>b61f93d0-e1ed-40b2-b067-22c243233448.MachineRole_IN_0</InstanceId>",
            "<State>Ready</State>",
        ] {
            assert!(report.contains(part), "{report}");
        }
        // It is of the kind of XML that this reader reads.
        let mut state = None;
        read_elements(&report, |path, value| {
            if path.last() == Some(&"State") {
                state = Some(value.to_owned());
            }
        })
        .expect("well-formed");
        assert_eq!(state.as_deref(), Some("Ready"));
        let marked = format!("\u{feff}{GOAL}");
        assert_eq!(GoalState::parse(marked.as_bytes()).ok(), Some(goal));
    }

    #[test]
    fn a_goal_state_without_a_value_or_with_a_hostile_one_is_refused() {
        for (from, to, lacks) in [
            ("<Incarnation>7</Incarnation>", "", "an Incarnation"),
            (">7<", ">-7<", "an Incarnation"),
            (">7<", "><", "an Incarnation"),
            (
                "c6d5526c-5ac2-4200-b6e2-56f2b70c5ab2",
                "a&lt;/ContainerId&gt;",
                "a ContainerId",
            ),
            ("ContainerId>", "Container-Id>", "a ContainerId"),
            ("InstanceId>", "OtherId>", "an InstanceId"),
            ("</GoalState>", "", "well-formed XML"),
            ("</Machine>", "</Container>", "well-formed XML"),
            ("<Version>", "<!DOCTYPE x []><Version>", "well-formed XML"),
            ("<Version>", "<![CDATA[x]]><Version>", "well-formed XML"),
            ("</GoalState>", "</GoalState><a></a>", "well-formed XML"),
        ] {
            let text = GOAL.replace(from, to);
            assert_ne!(text, GOAL, "{from}");
            let error = GoalState::parse(text.as_bytes()).expect_err(to);
            assert_eq!(error.to_string(), format!("its goal state lacks {lacks}"));
        }
        let long = GOAL.replace(">c6d", &format!(">{}", "a".repeat(VALUE_CHARS_MAX)));
        assert!(GoalState::parse(long.as_bytes()).is_err());
        let deep = "<a>".repeat(DEPTH_MAX + 1) + &"</a>".repeat(DEPTH_MAX + 1);
        assert!(GoalState::parse(deep.as_bytes()).is_err());
        assert!(GoalState::parse(b"\xff").is_err());
        assert!(GoalState::parse(b"").is_err());
    }

    #[test]
    fn a_goal_state_that_is_cut_anywhere_is_refused() {
        let whole = GOAL.trim_end();
        for end in 0..whole.len() {
            let refused = GoalState::parse(&whole.as_bytes()[..end]);
            assert!(refused.is_err(), "{end} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_elements_are_read(text in "(</?[ab]/?>|x|<|>|&|\\?|!){0,40}") {
            let _ = GoalState::parse(text.as_bytes());
        }
    }
}
