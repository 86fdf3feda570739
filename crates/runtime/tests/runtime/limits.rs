//! Each limit, at its edge.

use alknet_runtime::{Isolate, IsolateLimits, IsolateWork, RuntimeCode, SessionTimeSource, limits};
use serde_json::json;
use std::sync::Arc;

use crate::support::{RecordingHost, code, failure, main, outcome, spec, value, wait};

#[test]
fn limits_out_of_range_are_refused() {
    let with = |change: fn(&mut IsolateLimits)| {
        let mut limits = IsolateLimits::default();
        change(&mut limits);
        limits.checked().err().map(|failure| failure.code)
    };
    assert_eq!(with(|_| {}), None);
    assert_eq!(with(|l| l.heap_bytes = limits::HEAP_BYTES_MAX), None);
    assert_eq!(
        with(|l| l.heap_bytes = limits::HEAP_BYTES_MAX + 1),
        Some(RuntimeCode::Limit)
    );
    assert_eq!(
        with(|l| l.heap_bytes = limits::HEAP_BYTES_MIN - 1),
        Some(RuntimeCode::Limit)
    );
    assert_eq!(
        with(|l| l.stack_bytes = limits::STACK_BYTES_MAX + 1),
        Some(RuntimeCode::Limit)
    );
    assert_eq!(
        with(|l| l.cpu = limits::CPU_MAX * 2),
        Some(RuntimeCode::Limit)
    );
    assert_eq!(with(|l| l.fuel_ticks = 0), Some(RuntimeCode::Limit));
}

#[test]
fn a_refused_limit_has_its_name_and_its_range() {
    let refused = |limits: IsolateLimits| limits.checked().expect_err("out of range").message;
    let most = limits::CPU_MAX * 2;
    let slow = IsolateLimits {
        cpu: most,
        ..IsolateLimits::default()
    };
    let cpu = "the limit cpu_ms is out of its range: 1 to 300000";
    assert_eq!(refused(slow), cpu);
    let small = IsolateLimits {
        heap_bytes: 1,
        ..IsolateLimits::default()
    };
    let heap = "the limit heap_bytes is out of its range: 1048576 to 1073741824";
    assert_eq!(refused(small), heap);
    let idle = IsolateLimits {
        fuel_ticks: 0,
        ..IsolateLimits::default()
    };
    let fuel = "the limit fuel_ticks is out of its range: 1 at least";
    assert_eq!(refused(idle), fuel);
}

#[test]
fn the_least_heap_holds_the_globals() {
    let mut least = spec("export default 1");
    least.limits.heap_bytes = limits::HEAP_BYTES_MIN;
    least.limits.stack_bytes = limits::STACK_BYTES_MIN;
    assert_eq!(outcome(least).0.result, Ok(json!(1)));
}

#[test]
fn fuel_is_what_a_call_may_take_and_no_tick_more() {
    let source = "let n = 0; for (let i = 0; i < 200000; i++) n += i; export default n";
    let needed = outcome(spec(source)).0.stats.ticks;
    assert!(needed >= 20, "{needed}");
    let with = |ticks| {
        let mut spec = spec(source);
        spec.limits.fuel_ticks = ticks;
        outcome(spec).0.result.map_err(|failure| failure.code)
    };
    assert!(with(needed).is_ok());
    assert_eq!(with(needed - 1), Err(RuntimeCode::Fuel));
}

#[test]
fn each_call_has_fuel_of_its_own() {
    let mut spec = spec("export function f() { for (let i = 0; i < 100000; i++); return 1 }");
    spec.limits.fuel_ticks = 50;
    let mut isolate = Isolate::open(spec, Arc::new(RecordingHost::default())).expect("an isolate");
    for _ in 0..5 {
        let work = IsolateWork::Export {
            module: "./main.js".into(),
            export: "f".into(),
            input: json!(null),
        };
        assert_eq!(wait(isolate.run(work)).result, Ok(json!(1)));
    }
}

#[test]
fn jobs_of_a_turn_are_counted() {
    let jobs = |count: u64| {
        format!(
            "let n = 0; for (let i = 0; i < {count}; i++) queueMicrotask(() => n++); await new Promise((r) => setTimeout(r)); export default n"
        )
    };
    let few = limits::JOBS_PER_TURN - 100;
    assert_eq!(value(&jobs(few)), json!(few));
    assert_eq!(code(&jobs(limits::JOBS_PER_TURN + 1)), RuntimeCode::Fuel);
}

#[test]
fn a_call_that_a_limit_ended_says_how_much_it_had() {
    let mut spins = spec("for (;;);");
    spins.limits.fuel_ticks = 7;
    let spun = outcome(spins).0.result.expect_err("it is ended");
    assert!(spun.message.ends_with("7 ticks"), "{spun}");
    let jobs = "let again = () => queueMicrotask(again); again(); await new Promise(() => {});";
    let queued = failure(jobs);
    assert!(queued.message.contains("100000 jobs"), "{queued}");
    let deep = failure("(function f() { f() })()");
    assert!(deep.message.ends_with("262144 bytes"), "{deep}");
}

#[test]
fn calls_are_limited_in_flight_and_in_all() {
    let all = |count: usize| {
        let source = format!(
            "const all = []; for (let i = 0; i < {count}; i++) all.push(ops.call('yields', 1)); await Promise.all(all); export default all.length"
        );
        outcome(spec(&source))
            .0
            .result
            .map_err(|failure| failure.code)
    };
    assert_eq!(all(64), Ok(json!(64)));
    assert_eq!(all(65), Err(RuntimeCode::Quota));
    let each = |count: usize| {
        let source = format!(
            "for (let i = 0; i < {count}; i++) await ops.call('echo'); export default {count}"
        );
        outcome(spec(&source))
            .0
            .result
            .map_err(|failure| failure.code)
    };
    assert_eq!(each(1000), Ok(json!(1000)));
    assert_eq!(each(1001), Err(RuntimeCode::Quota));
}

#[test]
fn timers_and_subscriptions_are_limited() {
    let timers = |count: usize| {
        format!("for (let i = 0; i < {count}; i++) setTimeout(() => {{}}); export default 1")
    };
    assert_eq!(value(&timers(limits::TIMERS)), json!(1));
    assert_eq!(code(&timers(limits::TIMERS + 1)), RuntimeCode::Quota);
    let open = |count: usize| {
        format!(
            "for (let i = 0; i < {count}; i++) await ops.subscribe('count').next(); export default 1"
        )
    };
    assert_eq!(value(&open(limits::SUBSCRIPTIONS)), json!(1));
    assert_eq!(code(&open(limits::SUBSCRIPTIONS + 1)), RuntimeCode::Quota);
}

#[test]
fn bytes_outside_the_heap_are_counted_and_given_back() {
    let hold = "const held = []; for (let i = 0; i < COUNT; i++) held.push(await ops.call('bytes', 1 << 20)); export default held.length";
    let with = |count: &str| {
        let mut spec = spec(&hold.replace("COUNT", count));
        spec.limits.external_bytes = 4 << 20;
        outcome(spec).0
    };
    let four = with("4");
    assert_eq!(
        (four.result, four.stats.external_peak),
        (Ok(json!(4)), 4 << 20)
    );
    // The answer that does not fit is an error of its call.
    let five = with("5").result.expect_err("too many");
    let error = five.operation.expect("an operation's");
    assert_eq!(error.code, "QUOTA_EXCEEDED");
    let mut dropped =
        spec("for (let i = 0; i < 50; i++) await ops.call('bytes', 1 << 20); export default 1");
    dropped.limits.external_bytes = 2 << 20;
    assert_eq!(outcome(dropped).0.result, Ok(json!(1)));
}

#[test]
fn shared_bytes_cannot_be_changed() {
    let source = "
        const buffer = await ops.call('bytes', 4);
        const view = new Uint8Array(buffer);
        view[0] = 1;
        const tries = [() => view.fill(1), () => buffer.transfer(), () => structuredClone(buffer, { transfer: [buffer] })];
        export default [...tries.map((run) => { try { run(); return 'ran'; } catch (error) { return error.name; } }), [...view]];";
    assert_eq!(
        value(source),
        json!(["TypeError", "TypeError", "TypeError", [7, 7, 7, 7]])
    );
}

#[test]
fn the_console_is_limited_by_the_second_and_the_line() {
    let source = "
        console.log('x'.repeat(100000));
        for (let i = 0; i < 1000; i++) console.log('y'.repeat(1000));
        await new Promise((r) => setTimeout(r, 1000));
        console.error('next');";
    let mut waiting = spec(source);
    waiting.clock = SessionTimeSource::System;
    let started = std::time::Instant::now();
    let (_, host) = outcome(waiting);
    // The script waits for one second, and a slow machine takes more.
    let seconds = 1 + started.elapsed().as_secs() as usize;
    let lines = host.lines.lock().expect("no poison");
    assert_eq!(lines[0].1.len(), limits::LOG_LINE_BYTES);
    let bytes: usize = lines.iter().map(|(_, line)| line.len()).sum();
    let most = seconds * (limits::LOG_BYTES_PER_SECOND + 200);
    assert!(bytes <= most, "{bytes} of {most}");
    assert!(lines.iter().any(|(_, line)| line.contains("dropped")));
    assert_eq!(lines[lines.len() - 1].1, "next");
}

/// An empty line has no text, and the second of a virtual clock is over when the script says so.
#[test]
fn empty_lines_and_seconds_that_do_not_pass_leave_the_console_limited() {
    let source = "
        for (let second = 0; second < 10; second++) {
            for (let i = 0; i < 3000; i++) console.log('');
            await new Promise((r) => setTimeout(r, 1000));
        }";
    let started = std::time::Instant::now();
    let mut seeded = spec(source);
    seeded.clock = SessionTimeSource::Virtual { start_ms: 0 };
    seeded.limits.cpu = limits::CPU_MAX;
    let (_, host) = outcome(seeded);
    // A part of a second at each end counts as a whole one.
    let seconds = 2 + started.elapsed().as_secs() as usize;
    let of_second = limits::LOG_BYTES_PER_SECOND / limits::LOG_LINE_EXTRA_BYTES;
    let lines = host.lines.lock().expect("no poison").len();
    let most = seconds * (of_second + 1);
    assert!((of_second..=most).contains(&lines), "{lines} of {most}");
}

#[test]
fn a_promise_that_nothing_can_settle_is_an_error() {
    let failure = failure("await new Promise(() => {})");
    assert!(failure.message.contains("never settle"), "{failure}");
}

#[test]
fn real_time_passes_by_itself() {
    let mut spec = spec(
        "const t = Date.now(); await new Promise((r) => setTimeout(r, 20)); export default Date.now() > t && t > 1.6e12",
    );
    spec.clock = SessionTimeSource::System;
    let mut isolate = Isolate::open(spec, Arc::new(RecordingHost::default())).expect("an isolate");
    assert_eq!(wait(isolate.run(main())).result, Ok(json!(true)));
}

#[test]
fn memory_filled_by_promises_is_a_memory_error() {
    // The engine throws null where there is no memory for an error, and a promise that was rejected with it has no
    // handler.
    for source in [
        "const go = () => Promise.resolve().then(go); await go()",
        "const all = []; for (;;) all.push(new Promise(() => {}))",
    ] {
        let mut little = spec(source);
        // The promises of a chain are rejected one by one at its end: twice as many would come near the number of jobs
        // of a turn, which ends a call as fuel.
        little.limits.heap_bytes = 8 << 20;
        little.limits.fuel_ticks = u64::MAX;
        let failure = outcome(little).0.result.expect_err(source);
        assert_eq!(failure.code, RuntimeCode::Memory, "{source}: {failure}");
    }
    assert_eq!(
        code("Promise.reject(null); await 0"),
        RuntimeCode::Exception
    );
    // However full the heap is, a null that the script threw is its own.
    let mut full = spec("const a = new Array(1e6).fill(0.5); throw null");
    full.limits.heap_bytes = 20 << 20;
    let failure = outcome(full).0.result.expect_err("it throws");
    assert_eq!(failure.code, RuntimeCode::Exception, "{failure}");
}

/// Others choose how large an answer is. One that does not fit is an error of its call, and the session goes on.
#[test]
fn an_answer_that_does_not_fit_into_the_heap_is_an_error_of_its_call() {
    let source = "
        const held = [];
        let error;
        try {
            for (;;) held.push(await ops.call('echo', 'x'.repeat(1 << 20)));
        } catch (thrown) {
            error = thrown;
        }
        const full = [error.name, error.code, held.length > 3];
        held.length = 0;
        export default [...full, (await ops.call('echo', 'y'.repeat(1 << 20))).length];";
    let mut small = spec(source);
    small.limits.heap_bytes = 8 << 20;
    let expected = json!(["OpError", "QUOTA_EXCEEDED", true, 1 << 20]);
    assert_eq!(outcome(small).0.result, Ok(expected));
}

/// A caller may choose the text of an error.
#[test]
fn a_text_is_no_limit_that_was_reached() {
    for text in ["out of memory", "out of memory in regexp execution"] {
        assert_eq!(
            code(&format!("throw new Error('{text}')")),
            RuntimeCode::Exception
        );
    }
    let failure = |source: &str| outcome(spec(source)).0.result.expect_err("it throws");
    let deep = failure("(function f() { f() })()");
    assert_eq!(deep.code, RuntimeCode::Stack);
    let claimed = failure("throw new RangeError('Maximum call stack size exceeded')");
    assert!(!deep.closes() && !claimed.closes());
}
