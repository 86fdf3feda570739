//! The operations about scripts: they list sessions, end them, count them, and run a script.

mod eval;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alknet_call::{
    CallBody, CallError, CompositionAuthority, Ctx, ErrorCode, ErrorDef, HandlerKind,
    OperationSpec, Registration, ScopedPeerEnv,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::host::{ScriptSessions, SessionInfo, SessionState, declared_errors};
use eval::EvalService;

/// `runtime/sessions`, `runtime/kill`, `runtime/stats` and `runtime/eval`.
///
/// `reach` is the most that scripts of `runtime/eval` can call, such as `fs/*`: with the scopes of their caller, and
/// never with more.
pub fn operations<S: AsRef<str>>(
    sessions: &Arc<ScriptSessions>,
    reach: impl IntoIterator<Item = S>,
) -> Vec<Registration> {
    let reach: Vec<String> = reach.into_iter().map(|p| p.as_ref().to_owned()).collect();
    vec![
        list(Arc::clone(sessions)),
        kill(Arc::clone(sessions)),
        stats(Arc::clone(sessions)),
        eval(EvalService::new(sessions, reach.clone()), &reach),
    ]
}

fn list(sessions: Arc<ScriptSessions>) -> Registration {
    let spec = OperationSpec::query("runtime/sessions", "Lists the open script sessions.")
        .with_scope("runtime:read")
        .with_input(json!({ "type": ["object", "null"], "additionalProperties": false }))
        .with_output(json!({
            "type": "object",
            "properties": { "sessions": { "type": "array", "items": { "type": "object" } } },
            "required": ["sessions"],
        }));
    let handler = HandlerKind::once(move |_: CallBody, _| {
        let shown: Vec<Value> = sessions.list().iter().map(shown).collect();
        async move { Ok(json!({ "sessions": shown })) }
    });
    Registration::new(spec, handler)
}

fn shown(info: &SessionInfo) -> Value {
    // The clock may have been set back since then.
    let opened = info.opened.duration_since(UNIX_EPOCH).unwrap_or_default();
    let running_ms = match info.state {
        SessionState::Running { since } => json!(millis(since.elapsed())),
        _ => Value::Null,
    };
    json!({
        "session": info.id,
        "tenant": info.tenant,
        "mode": format!("{:?}", info.mode).to_lowercase(),
        "state": info.state.name(),
        "running_ms": running_ms,
        "opened_ms": millis(opened),
        "age_ms": millis(SystemTime::now().duration_since(info.opened).unwrap_or_default()),
        "pid": info.pid,
        "calls_ended": info.ended,
        "fuel": info.ticks,
        "cpu_ms": millis(info.cpu),
        "wall_ms": millis(info.wall),
        "gpu_ms": millis(info.gpu),
        "heap_peak": info.heap_peak,
        "external_peak": info.external_peak,
        "calls_out": info.calls,
        "log_dropped": info.log_dropped,
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionKillInput {
    session: u64,
}

fn kill(sessions: Arc<ScriptSessions>) -> Registration {
    let spec = OperationSpec::mutation("runtime/kill", "Ends a script session and its calls.")
        .with_scope("runtime:admin")
        .with_input(json!({
            "type": "object",
            "properties": { "session": { "type": "integer", "minimum": 0 } },
            "required": ["session"],
            "additionalProperties": false,
        }))
        .with_output(json!({
            "type": "object",
            "properties": { "killed": { "type": "boolean" } },
            "required": ["killed"],
        }));
    let handler = HandlerKind::once(move |input: CallBody, _| {
        let killed = input
            .parse::<SessionKillInput>()
            .map(|kill| sessions.kill(kill.session));
        async move { killed.map(|killed| json!({ "killed": killed })) }
    });
    Registration::new(spec, handler)
}

fn stats(sessions: Arc<ScriptSessions>) -> Registration {
    let spec = OperationSpec::query("runtime/stats", "Counts workers and script sessions.")
        .with_scope("runtime:read")
        .with_input(json!({ "type": ["object", "null"], "additionalProperties": false }))
        .with_output(json!({ "type": "object" }));
    let handler = HandlerKind::once(move |_: CallBody, _| {
        let stats = numbers(&sessions);
        async move { Ok(stats) }
    });
    Registration::new(spec, handler)
}

fn numbers(sessions: &ScriptSessions) -> Value {
    let stats = sessions.workers().stats();
    let workers: Map<String, Value> = stats
        .workers
        .iter()
        .map(|(role, running)| (role.name().to_owned(), json!(running)))
        .collect();
    let kills: Map<String, Value> = stats
        .ended
        .iter()
        .map(|(reason, count)| (reason.name().to_owned(), json!(count)))
        .collect();
    let sandbox: Map<String, Value> = stats
        .sandbox
        .iter()
        .map(|(role, sandbox)| {
            let gaps: Vec<String> = sandbox
                .gaps
                .iter()
                .map(|gap| format!("{:?}: {}", gap.layer, gap.why))
                .collect();
            let level = sandbox.level.to_string();
            (
                role.name().to_owned(),
                json!({ "level": level, "gaps": gaps }),
            )
        })
        .collect();
    let ended: Map<String, Value> = sessions
        .closed()
        .iter()
        .map(|(reason, count)| (reason.name().to_owned(), json!(count)))
        .collect();
    let (opened, refused) = sessions.opened();
    let death = stats.death.map(|(middle, most)| {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let all = stats.deaths;
        json!({
            "p50_ms": ms(middle), "p99_ms": ms(most), "max_ms": ms(all.longest),
            "count": all.count, "late": all.late,
        })
    });
    json!({
        "workers": workers,
        "workers_started": stats.started,
        "workers_ended": kills,
        "sandbox": sandbox,
        "limit_to_death": death,
        "quarantined": stats.quarantined,
        "sessions": sessions.list().len(),
        "sessions_opened": opened,
        "sessions_refused": refused,
        "sessions_ended": ended,
    })
}

fn eval(evals: Arc<EvalService>, reach: &[String]) -> Registration {
    let mut spec = OperationSpec::mutation("runtime/eval", "Runs a script as the caller.")
        .with_scope("runtime:debug")
        .with_input(eval::schema())
        .with_output(eval::output_schema());
    spec.error_schemas = declared_errors();
    spec.error_schemas.push(ErrorDef {
        code: eval::SCRIPT_FAILED.to_owned(),
        description: "An exception that the script did not catch.".to_owned(),
        schema: json!({ "type": "object" }),
        http_status: None,
    });
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let evals = Arc::clone(&evals);
        async move {
            if ctx.internal() {
                // The peer that sent the request did not write this script, which would have all of the peer's
                // rights.
                let text =
                    "no operation or script may run a script for its caller; call this directly";
                return Err(CallError::new(ErrorCode::Forbidden, text));
            }
            let request = input.parse().map_err(|error: CallError| error)?;
            evals.run(request, &ctx).await
        }
    });
    // A script calls with its caller's scopes, because its authority is limited to them. It reaches operations of
    // peers as its caller does, who names the peer. What was promoted for other operations alone is not for it.
    let authority = CompositionAuthority::new("runtime/eval", ["*"]);
    let reach = ScopedPeerEnv::new(reach).with_routing();
    let reach = reach.without_internal();
    Registration::new(spec, handler).composing(authority, reach)
}
