//! The clock, random numbers, timers and the console.

use std::rc::Rc;

use chacha20::rand_core::Rng;
use rquickjs::{Ctx, Function, Object, Persistent, Result, TypedArray, prelude::Func};
use sha2::{Digest, Sha256, Sha384, Sha512};

use crate::error::RuntimeCode;
use crate::host::ConsoleLevel;
use crate::isolate::{IsolateState, Timer, read_bytes};
use crate::limits::{
    LOG_BYTES_PER_SECOND, LOG_LINE_BYTES, LOG_LINE_EXTRA_BYTES, RANDOM_BYTES, TIMERS,
};

pub(super) fn install<'js>(
    ctx: &Ctx<'js>,
    native: &Object<'js>,
    shared: &Rc<IsolateState>,
) -> Result<()> {
    let state = Rc::clone(shared);
    native.set("now", Func::from(move || state.clock.borrow().now_ms()))?;
    let state = Rc::clone(shared);
    native.set("random", Func::from(move || random(&state)))?;
    let state = Rc::clone(shared);
    let fill = move |ctx: Ctx<'js>, length: usize| fill(&ctx, &state, length);
    native.set("fill", Function::new(ctx.clone(), fill)?)?;
    native.set("digest", Function::new(ctx.clone(), digest)?)?;
    let state = Rc::clone(shared);
    let timer = move |ctx: Ctx<'js>, run: Function<'js>, ms: f64| timer(&ctx, &state, run, ms);
    native.set("timer", Function::new(ctx.clone(), timer)?)?;
    let state = Rc::clone(shared);
    native.set("untimer", Func::from(move |id: f64| untimer(&state, id)))?;
    let state = Rc::clone(shared);
    native.set(
        "log",
        Func::from(move |level: u8, line: String| log(&state, level, line)),
    )
}

/// 53 bits of the session's random stream, as a number below 1.
fn random(shared: &IsolateState) -> f64 {
    // A double holds this number of bits without rounding (IEEE 754).
    let bits = shared.random.borrow_mut().next_u64() >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

fn fill<'js>(ctx: &Ctx<'js>, shared: &IsolateState, length: usize) -> Result<TypedArray<'js, u8>> {
    let mut bytes = vec![0; length.min(RANDOM_BYTES)];
    if shared.spec.seeded_crypto {
        shared.bytes.borrow_mut().fill_bytes(&mut bytes);
    } else if getrandom::fill(&mut bytes).is_err() {
        return Err(shared.raise(ctx, RuntimeCode::Policy, "the system has no random bytes"));
    }
    TypedArray::new_copy(ctx.clone(), bytes)
}

/// The digest, or `None` for an unknown name.
fn digest<'js>(
    ctx: Ctx<'js>,
    name: String,
    data: TypedArray<'js, u8>,
) -> Result<Option<TypedArray<'js, u8>>> {
    let data = read_bytes(&data)?;
    let made = match name.as_str() {
        "SHA-256" => Sha256::digest(&data).to_vec(),
        "SHA-384" => Sha384::digest(&data).to_vec(),
        "SHA-512" => Sha512::digest(&data).to_vec(),
        _ => return Ok(None),
    };
    TypedArray::new_copy(ctx, made).map(Some)
}

fn timer<'js>(ctx: &Ctx<'js>, shared: &IsolateState, run: Function<'js>, ms: f64) -> Result<u32> {
    let mut timers = shared.timers.borrow_mut();
    if timers.len() >= TIMERS {
        // Raising an error runs a script, which may set a timer.
        drop(timers);
        return Err(shared.raise(ctx, RuntimeCode::Quota, "too many timers wait"));
    }
    let id = shared.next_timer.get();
    // An id is greater than zero (HTML Standard, section on timers).
    shared.next_timer.set(id.wrapping_add(1).max(1));
    // `as` turns negative numbers and NaN into 0.
    let due = shared.clock.borrow().elapsed_ms().saturating_add(ms as u64);
    timers.insert(
        (due, id),
        Timer {
            run: Persistent::save(ctx, run),
        },
    );
    Ok(id)
}

fn untimer(shared: &IsolateState, id: f64) {
    shared
        .timers
        .borrow_mut()
        .retain(|(_, known), _| f64::from(*known) != id);
}

/// Passes a line on, within the limit per second. The first line beyond it is replaced by a
/// warning.
fn log(shared: &IsolateState, level: u8, mut line: String) {
    let second = shared.clock.borrow().real_seconds();
    let (left, since) = shared.log.get();
    let left = if since == second {
        left
    } else {
        LOG_BYTES_PER_SECOND
    };
    if line.len() > LOG_LINE_BYTES {
        // The cut is between two characters, because `truncate` panics within one.
        let end = (0..=LOG_LINE_BYTES)
            .rev()
            .find(|at| line.is_char_boundary(*at));
        line.truncate(end.unwrap_or(0));
    }
    let level = match level {
        0 => ConsoleLevel::Debug,
        2 => ConsoleLevel::Warn,
        3 => ConsoleLevel::Error,
        _ => ConsoleLevel::Info,
    };
    if let Some(rest) = left.checked_sub(line.len() + LOG_LINE_EXTRA_BYTES) {
        shared.log.set((rest, second));
        shared.host.log(level, &line);
    } else if left > 0 {
        shared.log.set((0, second));
        shared.host.log(
            ConsoleLevel::Warn,
            "the console is full for this second; lines are dropped",
        );
    } else {
        shared.log.set((0, second));
    }
}
