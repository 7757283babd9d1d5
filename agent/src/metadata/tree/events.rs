//! `meta-data/events` and `meta-data/spot`: what was announced for the instance.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use super::{Category, FIRST, View, second};
use crate::records::{Notice, ScheduledEvent};

pub fn events<'v>(view: View<'v>, category: Category<'v>) -> Category<'v> {
    let rebalance = notice(view).and_then(|notice| notice.rebalance);
    category
        .category(FIRST, "maintenance", move |inside| {
            inside.text(FIRST, "history", move || maintenance(view, true)).text(
                FIRST,
                "scheduled",
                move || maintenance(view, false),
            )
        })
        .category_if(rebalance.is_some(), "2020-10-27", "recommendations", move |inside| {
            inside.some(
                "2020-10-27",
                "rebalance",
                rebalance.map(|since| json!({ "noticeTime": second(since) }).to_string()),
            )
        })
}

/// Whether its interruption was announced, as it is for a spot instance.
pub fn is_interrupted(view: View<'_>) -> bool {
    notice(view).is_some_and(|notice| notice.interruption.is_some())
}

pub fn spot<'v>(view: View<'v>, category: Category<'v>) -> Category<'v> {
    let Some(interruption) = notice(view).and_then(|notice| notice.interruption.as_ref()) else {
        return category;
    };
    let time = second(interruption.time);
    let action = json!({ "action": interruption.action.name(), "time": time }).to_string();
    category.some("2016-11-15", "instance-action", Some(action)).some(
        FIRST,
        "termination-time",
        interruption.action.is_termination().then_some(time),
    )
}

/// What an operator has let it know since it was started.
fn notice(view: View<'_>) -> Option<&Notice> {
    let notice = view.world.get::<Notice>(&view.instance.id)?;
    Some(notice.as_ref()).filter(|notice| notice.given >= view.instance.launch_time)
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Maintenance<'v> {
    not_before: String,
    code: &'static str,
    description: String,
    event_id: &'v str,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_after: Option<String>,
    state: &'static str,
}

/// What is to come, or what has been.
fn maintenance(view: View<'_>, has_been: bool) -> String {
    let own = view.world.all::<ScheduledEvent>().filter(|event| event.instance == view.instance.id);
    let events = own.filter(|event| event.completed.is_some() == has_been).map(|event| Maintenance {
        not_before: day(event.not_before),
        code: event.code.name(),
        description: event.description(),
        event_id: event.id.as_str(),
        not_after: event.not_after.map(day),
        state: event.state(),
    });
    // Texts can always be written.
    serde_json::to_string_pretty(&events.collect::<Vec<_>>()).unwrap_or_default()
}

/// As in `21 Jan 2019 09:00:43 GMT`.
fn day(time: Timestamp) -> String {
    time.strftime("%-d %b %Y %H:%M:%S GMT").to_string()
}
