//! Records in the form that logrus gives them: `{"level":…,"msg":…,"time":…,<fields>}`.

use std::fmt;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Always nine digits behind the second, as containerd's loggers write it: texts sort as times do.
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:9]Z");

/// Formats an event as one line of JSON.
pub(crate) struct JsonFormat;

impl<S, N> FormatEvent<S, N> for JsonFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let record = record(fields, *event.metadata().level(), OffsetDateTime::now_utc());
        writeln!(writer, "{}", Value::Object(record))
    }
}

fn record(fields: Fields, level: Level, now: OffsetDateTime) -> Map<String, Value> {
    let mut record = fields.0;
    // logrus says "warning"; alerts match on that word.
    let level = match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    };
    record.insert("level".into(), level.into());
    record.insert("time".into(), now.format(TIME).unwrap_or_default().into());
    // Always there, like the other two.
    record.entry("msg").or_insert_with(|| "".into());
    record
}

/// Collects the fields of an event; the message goes under `msg`.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        let name = if field.name() == "message" { "msg" } else { field.name() };
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, value.to_string().into());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use time::format_description::well_known::Rfc3339;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_record_has_the_keys_that_scripts_search_for() {
        let sink = Sink::default();
        let writer = sink.clone();
        let layer =
            tracing_subscriber::fmt::layer().event_format(JsonFormat).with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!("remote-snapshot-prepared" = "false", key = %"default/1/x", size = 3, "failed to prepare");
        });
        let line = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let record: Map<String, Value> = serde_json::from_str(&line).unwrap();
        assert_eq!(record["msg"], "failed to prepare");
        assert_eq!(record["level"], "warning");
        assert_eq!(record["remote-snapshot-prepared"], "false");
        assert_eq!(record["key"], "default/1/x");
        assert_eq!(record["size"], 3);
        let time = record["time"].as_str().unwrap();
        assert!(OffsetDateTime::parse(time, &Rfc3339).is_ok());
        assert_eq!(time.len(), "2026-11-24T19:46:10.123456789Z".len());
    }
}
