//! The content of a script session's frames, beyond that of all workers' frames.
//!
//! Values are sent as CBOR, so that numbers arrive unchanged; as text they would be rounded twice.

mod json;
mod lines;
mod parts;
mod text;
mod weigh;

use std::os::fd::OwnedFd;

use alknet_runtime::{
    ConsoleLevel, EnvOperation, GlobalGrants, IsolateLimits, Language, ModuleSet, OpError,
    RecordedCall, ScriptCallOptions, ScriptRegistration, SessionMode,
};
use alknet_worker::{CborBody, FrameBlob, WorkerFrameError};
pub(crate) use json::{Json, LongNamed};
pub(crate) use parts::send_reply;
#[cfg(test)]
pub(crate) use parts::testing::PartsText;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
pub(crate) use text::JsonText;
pub(crate) use weigh::weigh;

use crate::limits::{NESTING_MAX, VALUE_BYTES_MAX};

/// Writes a value.
pub(crate) fn pack<T: Serialize>(value: &T) -> Result<Vec<u8>, WorkerFrameError> {
    let mut bytes = Vec::new();
    let written = ciborium::ser::into_writer(value, &mut bytes);
    written.map_err(|error| WorkerFrameError::Cbor(error.to_string()))?;
    Ok(bytes)
}

/// Reads exactly one value.
pub(crate) fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WorkerFrameError> {
    let mut rest = bytes;
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, NESTING_MAX);
    // The error text may quote what the worker wrote, which may be long.
    let value = value
        .map_err(|error| WorkerFrameError::Cbor(error.to_string().chars().take(160).collect()))?;
    // Bytes after the value would hide data from this reader that another one sees.
    match rest.is_empty() {
        true => Ok(value),
        false => Err(WorkerFrameError::Cbor(
            "something follows the value".to_owned(),
        )),
    }
}

/// The body of a frame.
pub(crate) fn body<T: Serialize>(value: &T) -> Result<CborBody, WorkerFrameError> {
    pack(value).map(CborBody::from_cbor)
}

/// Reads the body of a frame.
pub(crate) fn read<T: DeserializeOwned>(body: &CborBody) -> Result<T, WorkerFrameError> {
    unpack(body.as_bytes())
}

/// Writes a value into the frame, or beside it if it is large.
pub(crate) fn blob<T: Serialize>(
    value: &T,
    fds: &mut Vec<OwnedFd>,
) -> Result<FrameBlob, WorkerFrameError> {
    FrameBlob::pack(pack(value)?, fds)
}

/// Reads the value of a blob.
pub(crate) fn open<T: DeserializeOwned>(
    blob: FrameBlob,
    fds: &[OwnedFd],
) -> Result<T, WorkerFrameError> {
    unpack(&blob.read(fds, VALUE_BYTES_MAX)?)
}

/// The start of a session, beyond its limits, seed and clock.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct SessionOpening {
    pub(crate) mode: SessionMode,
    pub(crate) grants: GlobalGrants,
    pub(crate) frozen: bool,
    pub(crate) seeded_crypto: bool,
    pub(crate) limits: IsolateLimits,
    pub(crate) modules: Vec<(String, String, Language)>,
    pub(crate) imports: Vec<(String, String)>,
    /// The module whose `dispose` is called when a service ends.
    pub(crate) main: Option<String>,
    /// The operations that the session may call, for `ops.list`.
    pub(crate) operations: Vec<EnvOperation>,
    /// The recorded answers to its calls, which replace the host's.
    pub(crate) record: Option<Vec<RecordedCall>>,
}

impl SessionOpening {
    /// The modules in the form for the frame.
    pub(crate) fn texts(set: &ModuleSet) -> Vec<(String, String, Language)> {
        let entries = set.entries();
        entries
            .map(|(name, text, language)| (name.to_owned(), text.to_owned(), language))
            .collect()
    }

    /// The import map in the form for the frame.
    pub(crate) fn map(set: &ModuleSet) -> Vec<(String, String)> {
        let imports = set.imports();
        imports
            .map(|(name, full)| (name.to_owned(), full.to_owned()))
            .collect()
    }
}

/// The options of a call, and the bytes beside its input.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct WireCallOptions {
    pub(crate) options: ScriptCallOptions,
    /// The bytes that `{"$bin": …}` in the input refers to.
    pub(crate) tail: Option<FrameBlob>,
    /// Whether the answer may be a file to be mapped.
    pub(crate) map: bool,
}

/// An operation's answer: the text that the host has, or the value that the worker makes of it.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum WireReply<V> {
    Json(V),
    /// With the bytes that `{"$bin": …}` refers to.
    Mixed(V, FrameBlob),
    /// With the file in this descriptor of the frame.
    File(V, usize),
}

/// The result of a call of the host.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct CallResult {
    pub(crate) value: Json,
    pub(crate) shown: Option<String>,
    pub(crate) calls: u64,
}

/// An operation that a session offers, by its name in frames.
pub(crate) type SessionOffer = ScriptRegistration;

/// A message of a script worker to its host.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum GuestMessage {
    /// The script has taken this number of items of a subscription.
    Taken(u64, u32),
    /// An item of a subscription that the script serves, by the host's call: a [`Json`].
    Item(u64, CborBody),
    /// Lines of the console.
    Lines(#[serde(deserialize_with = "lines::read")] Vec<(ConsoleLevel, String)>),
}

/// An export that the host calls, in the place of the name of a registered handler.
#[derive(Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct InvokedExport {
    pub(crate) module: String,
    pub(crate) export: String,
}

impl InvokedExport {
    /// No name of a handler has a brace.
    const MARK: char = '{';

    pub(crate) fn to_op(&self) -> String {
        json!({ "module": self.module, "export": self.export }).to_string()
    }

    /// `None` for the name of a handler.
    pub(crate) fn from_op(op: &str) -> Option<Self> {
        op.starts_with(Self::MARK)
            .then(|| serde_json::from_str(op).ok())?
    }
}

/// A message of the host to a script worker.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum HostMessage {
    /// The host took this number of frames.
    Heard(usize),
    /// The answer to the oldest registration without one.
    Registered(Result<(), OpError>),
    /// The host's call took an item of a subscription that the script serves.
    Taken(u64),
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn members_have_names_of_any_length() {
        let long = "n".repeat(100_000);
        let value = json!({ (long): [0, 0.1, { "a": null }], "b": u64::MAX });
        let bytes = pack(&value).expect("CBOR");
        let back = unpack::<LongNamed>(&bytes).expect("the same");
        assert_eq!(back.into_value(), value);
        let text = value.to_string();
        let answer = WireReply::Json(JsonText(text.as_bytes()));
        let bytes = pack(&answer).expect("CBOR");
        let WireReply::Json(back) = unpack::<WireReply<LongNamed>>(&bytes).expect("the same")
        else {
            panic!("another kind");
        };
        assert_eq!(back.into_value(), value);
    }

    #[test]
    fn an_export_is_no_handler() {
        let export = InvokedExport {
            module: "./a\"b\n".to_owned(),
            export: "init".to_owned(),
        };
        let op = export.to_op();
        assert_eq!(InvokedExport::from_op(&op), Some(export));
        assert_eq!(InvokedExport::from_op("js/init"), None);
    }

    #[test]
    fn values_of_the_deepest_kind_cross_and_numbers_stay_what_they_are() {
        let mut deep = json!(0.1 + 0.2);
        for level in 0..alknet_runtime::limits::JSON_DEPTH {
            deep = if level % 2 == 0 {
                json!([deep])
            } else {
                json!({ "a": deep })
            };
        }
        let text = deep.to_string();
        let answer = WireReply::Json(JsonText(text.as_bytes()));
        let back = unpack::<WireReply<Value>>(&pack(&answer).expect("CBOR"));
        let WireReply::Json(back) = back.expect("the same") else {
            panic!("another kind");
        };
        assert_eq!(back, deep);
        let numbers = json!([i64::MIN, u64::MAX, 5e-324, 1.7976931348623157e308, -0.5, 0]);
        let bytes = pack(&numbers).expect("CBOR");
        assert_eq!(unpack::<Value>(&bytes).expect("the same"), numbers);
        let bottomless = [vec![0x81; 1_000_000], vec![0]].concat();
        assert!(unpack::<Value>(&bottomless).is_err());
    }
}
