//! Topics and levels of the log, which modules of a session share.

use alknet_runtime::ConsoleLevel;
use serde_json::json;

use crate::support::{failure, modules, outcome, value};

#[test]
fn each_order_of_the_project_is_announced_and_logged() {
    let orders = include_str!("../data/project/orders.ts");
    let spec = modules(&[
        ("./main.js", "export { default } from './orders.ts';"),
        ("./orders.ts", orders),
    ]);
    let (outcome, host) = outcome(spec);
    let expected = json!({
        "told": [2, 2], "ids": [1, 2], "after": 0, "doubled": [10, 40], "path": "count",
    });
    assert_eq!(outcome.result, Ok(expected));
    let line = "[orders/mail] expensive { id: 2 } costs 20".to_owned();
    let lines = host.lines.lock().expect("no poison").clone();
    assert_eq!(lines, [(ConsoleLevel::Warn, line)]);
}

#[test]
fn a_topic_is_the_same_in_every_module() {
    let spec = modules(&[
        (
            "./main.js",
            "import { topic } from 'alknet:core/pubsub';
             import { heard } from './other.js';
             topic('a').publish(1);
             topic('b').publish(2);
             export default heard;",
        ),
        (
            "./other.js",
            "import { topic } from 'alknet:core/pubsub';
             export const heard = [];
             topic('a').subscribe((value) => heard.push(value));",
        ),
    ]);
    assert_eq!(outcome(spec).0.result, Ok(json!([1])));
}

#[test]
fn listeners_fail_and_leave_without_harm_to_others() {
    let source = "
        import { topic } from 'alknet:core/pubsub';
        const a = topic('a'), heard = [], told = [];
        const controller = new AbortController();
        const publish = (value) => {
          try { told.push(a.publish(value)); } catch (error) { told.push(error.errors?.length ?? error.message); }
        };
        const stops = [1, 2].map((n) => a.subscribe(() => { throw new Error(`no ${n}`); }));
        a.subscribe((value) => heard.push(value), { signal: controller.signal });
        publish('first');
        stops[0]();
        publish('second');
        stops[1]();
        // Takes away the one behind it.
        const stop = a.subscribe(() => last());
        const last = a.subscribe(() => heard.push('never'));
        publish('third');
        controller.abort();
        stop();
        publish('fourth');
        export default [told, heard];";
    let expected = json!([[2, "no 2", 2, 0], ["first", "second", "third"]]);
    assert_eq!(value(source), expected);
}

#[test]
fn a_loop_that_is_too_slow_ends() {
    let source = "
        import { topic } from 'alknet:core/pubsub';
        const a = topic('a'), values = a[Symbol.asyncIterator]();
        for (let n = 0; n < 2000; n++) a.publish(n);
        let read = 0, name;
        try { while (!(await values.next()).done) read++; } catch (error) { name = error.name; }
        export default [read, name, (await values.next()).done, a.publish(0)];";
    assert_eq!(value(source), json!([1024, "RangeError", true, 0]));
}

#[test]
fn loops_that_are_left_get_nothing_more() {
    let source = "
        import { topic } from 'alknet:core/pubsub';
        const a = topic('a'), values = a[Symbol.asyncIterator]();
        const asked = values.next();
        await values.return();
        export default [(await asked).done, a.publish(1), (await values.next()).done];";
    assert_eq!(value(source), json!([true, 0, true]));
}

#[test]
fn levels_are_those_that_there_are() {
    let source = "
        import { getLevel, logger, setLevel } from 'alknet:core/logging';
        const log = logger(), levels = ['debug', 'info', 'warn', 'error'];
        const first = getLevel();
        for (const level of [...levels, 'none']) {
          setLevel(level);
          for (const each of levels) log[each](level, each);
        }
        export default first;";
    let (outcome, host) = outcome(modules(&[("./main.js", source)]));
    assert_eq!(outcome.result, Ok(json!("info")));
    let lines = host.lines.lock().expect("no poison").clone();
    assert_eq!(lines.len(), 4 + 3 + 2 + 1);
    assert_eq!(lines[0], (ConsoleLevel::Debug, "debug debug".to_owned()));
    assert_eq!(lines[9], (ConsoleLevel::Error, "error error".to_owned()));

    let wrong = "import { setLevel } from 'alknet:core/logging'; setLevel('loud');";
    assert_eq!(failure(wrong).name.as_deref(), Some("RangeError"));
    let nameless = "import { topic } from 'alknet:core/pubsub'; topic(1);";
    assert_eq!(failure(nameless).name.as_deref(), Some("TypeError"));
}
