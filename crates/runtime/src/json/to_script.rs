//! Converts values of the host for a script.

use bytes::Bytes;
use rquickjs::object::Property;
use rquickjs::{Array, Ctx, IntoJs, Object, Result, String as JsString, Value as JsValue};
use serde_json::{Number, Value};

use crate::host::{SinkStopped, ValueSink};
use crate::isolate::{IsolateState, share_bytes};
use crate::json::names::NameBuckets;

/// Makes a script's value of a host's. Properties are defined instead of assigned, so a key
/// `__proto__`, or a setter that the script added to `Object.prototype`, has no effect.
/// [`write_bounded`] is for values that others chose.
pub(crate) fn write<'js>(ctx: &Ctx<'js>, value: &Value) -> Result<JsValue<'js>> {
    match value {
        Value::Null => Ok(JsValue::new_null(ctx.clone())),
        Value::Bool(value) => Ok(JsValue::new_bool(ctx.clone(), *value)),
        Value::Number(number) => Ok(number_of(ctx, number)),
        Value::String(text) => Ok(JsString::from_str(ctx.clone(), text)?.into_value()),
        Value::Array(items) => {
            let array = Array::new(ctx.clone())?;
            for (index, item) in items.iter().enumerate() {
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                array.as_object().prop(index, own(write(ctx, item)?))?;
            }
            Ok(array.into_value())
        }
        Value::Object(members) => {
            let object = Object::new(ctx.clone())?;
            for (key, member) in members {
                object.prop(key.as_str(), own(write(ctx, member)?))?;
            }
            Ok(object.into_value())
        }
    }
}

/// Makes a script's value of one that others have chosen.
///
/// # Errors
/// There is no room for it, or the isolate has reached a limit.
pub(crate) fn write_bounded<'js>(
    ctx: &Ctx<'js>,
    shared: &IsolateState,
    value: &Value,
) -> std::result::Result<JsValue<'js>, WriterStop> {
    shared.heap.with_reserve(|| {
        let mut writer = ScriptValueWriter::new(ctx, shared);
        let sent = send(value, &mut writer);
        let why = writer.stopped().unwrap_or(WriterStop::Room);
        sent.map_err(|SinkStopped| why)?;
        writer.into_value().ok_or(why)
    })
}

/// Sends a value of the host to a sink.
///
/// # Errors
/// The sink has stopped.
pub(crate) fn send(
    value: &Value,
    sink: &mut dyn ValueSink,
) -> std::result::Result<(), SinkStopped> {
    match value {
        Value::Null => sink.null(),
        Value::Bool(value) => sink.boolean(*value),
        Value::Number(number) => sink.number(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => sink.text(text),
        Value::Array(items) => {
            sink.begin_list()?;
            items.iter().try_for_each(|item| send(item, sink))?;
            sink.end()
        }
        Value::Object(members) => {
            sink.begin_object()?;
            for (name, member) in members {
                sink.name(name)?;
                send(member, sink)?;
            }
            sink.end()
        }
    }
}

/// The parts of a value between two checks of the isolate's limits. The engine checks them only where a script runs,
/// and makes a value in native code.
const PARTS_PER_LOOK: usize = 64;

/// Why a value takes no more parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WriterStop {
    /// There is no room, or its parts make no value.
    #[error("{SinkStopped}")]
    Room,
    /// Too many names would share a place in the engine's table.
    #[error(
        "more than {} names of its members share the same hash",
        crate::limits::NAMES_ALIKE_MAX
    )]
    Names,
    /// The isolate has reached a limit, such as its time.
    #[error("the session was ended")]
    Ended,
}

/// A script's value that is made part by part. If there is no room for a part, what was made is freed.
pub(crate) struct ScriptValueWriter<'a, 'js> {
    ctx: &'a Ctx<'js>,
    shared: &'a IsolateState,
    bytes: Option<Bytes>,
    open: Vec<OpenValue<'js>>,
    value: Option<JsValue<'js>>,
    names: NameBuckets,
    parts: usize,
    stopped: Option<WriterStop>,
}

/// A list or an object whose end has not come.
enum OpenValue<'js> {
    List(Array<'js>, u32),
    Object {
        object: Object<'js>,
        members: usize,
        /// Of the member whose value comes next, else of the last one.
        name: String,
    },
}

impl<'a, 'js> ScriptValueWriter<'a, 'js> {
    pub(crate) fn new(ctx: &'a Ctx<'js>, shared: &'a IsolateState) -> Self {
        Self {
            ctx,
            shared,
            bytes: None,
            open: Vec::new(),
            value: None,
            names: NameBuckets::default(),
            parts: 0,
            stopped: None,
        }
    }

    /// The value, or `None` if there was no room for it, or its end is missing.
    pub(crate) fn into_value(self) -> Option<JsValue<'js>> {
        self.value.filter(|_| self.open.is_empty())
    }

    /// Why it has stopped, if it has.
    pub(crate) const fn stopped(&self) -> Option<WriterStop> {
        self.stopped
    }

    /// A buffer alone.
    pub(crate) fn buffer(&mut self, bytes: Bytes) -> Taken {
        match share_bytes(self.ctx, self.shared, bytes) {
            Ok(Some(buffer)) => self.put(Ok(buffer)),
            Ok(None) => self.stop(WriterStop::Room),
            Err(error) => self.put(Err(error)),
        }
    }

    fn stop(&mut self, why: WriterStop) -> Taken {
        // The engine's own error, if there was memory for one.
        self.ctx.catch();
        self.open.clear();
        self.value = None;
        self.stopped.get_or_insert(why);
        Err(SinkStopped)
    }

    /// Counts a part, and checks the limits of the isolate from time to time.
    fn check_limits(&mut self) -> Taken {
        self.parts += 1;
        if !self.parts.is_multiple_of(PARTS_PER_LOOK) {
            return Ok(());
        }
        let budget = &self.shared.budget;
        budget.over_time();
        match budget.stopped() {
            Some(_) => self.stop(WriterStop::Ended),
            None => Ok(()),
        }
    }

    fn put(&mut self, made: Result<JsValue<'js>>) -> Taken {
        self.check_limits()?;
        let placed = match (made, self.open.last_mut()) {
            (Err(error), _) => Err(error),
            (Ok(value), None) => {
                let is_first = self.value.replace(value).is_none() && self.stopped.is_none();
                return if is_first {
                    Ok(())
                } else {
                    self.stop(WriterStop::Room)
                };
            }
            (Ok(value), Some(OpenValue::List(list, items))) => {
                let index = *items;
                *items = items.saturating_add(1);
                list.as_object().prop(index, own(value))
            }
            (
                Ok(value),
                Some(OpenValue::Object {
                    object,
                    members,
                    name,
                }),
            ) => {
                *members += 1;
                object.prop(name.as_str(), own(value))
            }
        };
        match placed {
            Ok(_) => Ok(()),
            Err(_) => self.stop(WriterStop::Room),
        }
    }

    fn begin(&mut self, made: Result<OpenValue<'js>>) -> Taken {
        match made {
            Ok(_) if self.stopped.is_some() => Err(SinkStopped),
            Ok(begun) => {
                self.open.push(begun);
                Ok(())
            }
            Err(_) => self.stop(WriterStop::Room),
        }
    }

    /// The part of the bytes that an object refers to. An object that only resembles a reference stays an object.
    fn part(&self, object: &Object<'js>, members: usize, name: &str) -> Option<Bytes> {
        let bytes = self
            .bytes
            .as_ref()
            .filter(|_| members == 1 && name == BIN)?;
        let pair: Array<'js> = object.get::<_, JsValue<'js>>(BIN).ok()?.into_array()?;
        if pair.len() != 2 {
            return None;
        }
        let [offset, length] = [0, 1].map(|at| whole(&pair.get::<JsValue<'js>>(at).ok()?));
        let (offset, length) = (offset?, length?);
        let end = offset.checked_add(length)?;
        (end <= bytes.len()).then(|| bytes.slice(offset..end))
    }
}

/// Whether the sink took a part.
type Taken = std::result::Result<(), SinkStopped>;

/// The one member of an object that refers to bytes.
const BIN: &str = "$bin";

/// A number of bytes.
fn whole(value: &JsValue<'_>) -> Option<usize> {
    let number = value.as_number()?;
    // Larger numbers are not exact, and no answer has so many bytes.
    let is_whole = number.fract() == 0.0 && (0.0..=u32::MAX.into()).contains(&number);
    is_whole.then_some(number as usize)
}

impl ValueSink for ScriptValueWriter<'_, '_> {
    fn bytes(&mut self, bytes: Bytes) {
        self.bytes = Some(bytes);
    }

    fn null(&mut self) -> Taken {
        self.put(Ok(JsValue::new_null(self.ctx.clone())))
    }

    fn boolean(&mut self, value: bool) -> Taken {
        self.put(Ok(JsValue::new_bool(self.ctx.clone(), value)))
    }

    fn number(&mut self, value: f64) -> Taken {
        // The engine stores small integers without a floating-point value. Zero has a sign that they do not have.
        let small = value as i32;
        let is_small = f64::from(small) == value && (small != 0 || value.is_sign_positive());
        let number = match is_small {
            true => JsValue::new_int(self.ctx.clone(), small),
            false => JsValue::new_number(self.ctx.clone(), value),
        };
        self.put(Ok(number))
    }

    fn text(&mut self, value: &str) -> Taken {
        let text = JsString::from_str(self.ctx.clone(), value);
        self.put(text.map(JsString::into_value))
    }

    fn begin_list(&mut self) -> Taken {
        let list = Array::new(self.ctx.clone());
        self.begin(list.map(|list| OpenValue::List(list, 0)))
    }

    fn begin_object(&mut self) -> Taken {
        let object = Object::new(self.ctx.clone());
        self.begin(object.map(|object| OpenValue::Object {
            object,
            members: 0,
            name: String::new(),
        }))
    }

    fn name(&mut self, name: &str) -> Taken {
        match self.open.last_mut() {
            Some(OpenValue::Object { .. }) if !self.names.admit(name) => {
                self.stop(WriterStop::Names)
            }
            Some(OpenValue::Object { name: next, .. }) => {
                name.clone_into(next);
                Ok(())
            }
            _ => self.stop(WriterStop::Room),
        }
    }

    fn end(&mut self) -> Taken {
        match self.open.pop() {
            Some(OpenValue::List(list, _)) => self.put(Ok(list.into_value())),
            Some(OpenValue::Object {
                object,
                members,
                name,
            }) => match self.part(&object, members, &name) {
                Some(part) => self.buffer(part),
                None => self.put(Ok(object.into_value())),
            },
            None => self.stop(WriterStop::Room),
        }
    }
}

fn own<'js>(value: impl IntoJs<'js>) -> Property<impl IntoJs<'js>> {
    Property::from(value).writable().enumerable().configurable()
}

fn number_of<'js>(ctx: &Ctx<'js>, number: &Number) -> JsValue<'js> {
    // The engine stores small integers without a floating-point value.
    let small = number.as_i64().and_then(|whole| i32::try_from(whole).ok());
    match small {
        Some(whole) => JsValue::new_int(ctx.clone(), whole),
        None => JsValue::new_number(ctx.clone(), number.as_f64().unwrap_or(f64::NAN)),
    }
}
