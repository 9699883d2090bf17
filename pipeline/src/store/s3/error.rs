//! The one place where S3's answers become [`StoreError`]s.

use std::error::Error;
use std::time::{Duration, SystemTime};

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use crate::store::{StoreError, StoreErrorKind as K};

/// Longest text of a store that we repeat, in bytes.
const LONGEST: usize = 400;

/// What went wrong with `operation` on `key` (with its location).
pub(super) fn translate<E>(
    operation: &'static str,
    key: &str,
    error: &SdkError<E, HttpResponse>,
) -> StoreError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let (kind, message) = match error {
        SdkError::ServiceError(e) => {
            let (code, said) = (e.err().code().unwrap_or(""), e.err().message().unwrap_or(""));
            answered(code, said, e.raw())
        }
        // An answer whose body broke off, or that is none of S3's (a proxy's page).
        SdkError::ResponseError(e) => match e.raw().status().as_u16() {
            200..=299 => (K::Transient, chain(error)),
            _ => answered("", "", e.raw()),
        },
        SdkError::TimeoutError(_) => (K::Transient, chain(error)),
        SdkError::DispatchFailure(e) => {
            let text = chain(error);
            (if e.is_user() { K::Other } else { not_sent(&text) }, text)
        }
        _ => {
            let text = chain(error);
            (if is_credentials(&text) { K::Denied } else { K::Other }, text)
        }
    };
    let retry_after = error.raw_response().and_then(|r| header(r, "retry-after")?.parse().ok());
    // Without the cause: the message has what it says, and its own text would repeat that.
    let mut translated = StoreError::new(kind, operation, key, message);
    translated.retry_after = retry_after.map(Duration::from_secs);
    translated
}

/// A body that broke off while it was read.
pub(super) fn broken_body(
    operation: &'static str,
    key: &str,
    error: impl Error + Send + Sync + 'static,
) -> StoreError {
    StoreError::new(K::Transient, operation, key, chain(&error))
}

/// True when the answer may mean that the server does not know the checksum we sent.
pub(super) fn refuses_checksum(error: &StoreError) -> bool {
    matches!(error.kind, K::Unsupported | K::Other) && error.message.to_ascii_lowercase().contains("checksum")
}

fn answered(code: &str, said: &str, response: &HttpResponse) -> (K, String) {
    let status = response.status().as_u16();
    let kind = kind_of(code, status);
    let mut said = shorten(said);
    match code {
        "NoSuchBucket" => said = "the bucket does not exist".into(),
        "RequestTimeTooSkewed" => said = skew(header(response, "date"), SystemTime::now()),
        "PermanentRedirect" | "TemporaryRedirect" | "AuthorizationHeaderMalformed" => {
            if let Some(region) = header(response, "x-amz-bucket-region") {
                said = format!("the bucket is in region {region}: give that one");
            }
        }
        // Answers to HEAD have no body.
        "" | "NotFound" if said.is_empty() => said = status_text(status).into(),
        _ if said.is_empty() => said = code.into(),
        _ => {}
    }
    let mut message = format!("{said} (HTTP {status}");
    if !code.is_empty() {
        message += &format!(", {code}");
    }
    // What a store's support asks for.
    if let Some(id) = header(response, "x-amz-request-id") {
        message += &format!(", request {}", shorten(id));
    }
    message.push(')');
    (kind, message)
}

fn kind_of(code: &str, status: u16) -> K {
    match code {
        "NoSuchKey" | "NoSuchUpload" | "NoSuchBucket" | "NoSuchVersion" | "NotFound" => K::NotFound,
        "PreconditionFailed" => K::AlreadyExists,
        // Two conditional writes at the same time (AWS): who lost finds out by asking again.
        "ConditionalRequestConflict" | "OperationAborted" => K::Transient,
        "InvalidRange" => K::OutOfRange,
        "AccessDenied"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "AccountProblem"
        | "AllAccessDisabled"
        | "RequestTimeTooSkewed" => K::Denied,
        "BadDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" => K::Checksum,
        "IncompleteBody"
        | "RequestTimeout"
        | "SlowDown"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "ServiceUnavailable"
        | "InternalError"
        | "Busy" => K::Transient,
        "NotImplemented" | "MethodNotAllowed" => K::Unsupported,
        "QuotaExceeded" | "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded" | "InsufficientCapacity" => {
            K::Full
        }
        _ => match status {
            404 => K::NotFound,
            412 => K::AlreadyExists,
            409 | 408 | 425 | 429 => K::Transient,
            416 => K::OutOfRange,
            401 | 403 => K::Denied,
            405 | 501 => K::Unsupported,
            507 => K::Full,
            // A success that is none: an error nobody knows, or a page of some proxy.
            200..=299 | 500..=599 => K::Transient,
            _ => K::Other,
        },
    }
}

fn status_text(status: u16) -> &'static str {
    match status {
        200..=299 => "an answer that makes no sense",
        400 => "the store did not understand the request",
        401 | 403 => "access denied",
        404 => "not found",
        409 => "conflicting requests",
        412 => "the key exists",
        416 => "the object is shorter",
        429 => "too many requests",
        500..=599 => "the store has trouble",
        _ => "unexpected answer",
    }
}

fn skew(date: Option<&str>, here: SystemTime) -> String {
    let there = date
        .and_then(|d| DateTime::from_str(d, Format::HttpDate).ok())
        .and_then(|d| SystemTime::try_from(d).ok());
    let by = match there.map(|t| here.duration_since(t)) {
        Some(Ok(ahead)) => format!(" by {} s: it is fast", ahead.as_secs()),
        Some(Err(behind)) => format!(" by {} s: it is slow", behind.duration().as_secs()),
        None => String::new(),
    };
    format!("the clock of this machine differs from the store's{by}; set it and run again")
}

/// A request for which no answer arrived. The SDK tells the phases apart in texts only.
fn not_sent(text: &str) -> K {
    if is_credentials(text) {
        K::Denied
    } else if ["(Connect)", "dns error", "connect timeout", "certificate"].iter().any(|t| text.contains(t)) {
        K::Unreachable
    } else {
        K::Transient
    }
}

fn is_credentials(text: &str) -> bool {
    text.to_ascii_lowercase().contains("credential")
}

/// The texts of an error and its causes, without repetitions.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(e) = next {
        let text = e.to_string();
        if !texts.iter().any(|t| t.contains(&text)) {
            texts.push(text);
        }
        next = e.source();
    }
    shorten(&texts.join(": "))
}

fn shorten(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match clean.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} ...", &clean[..end]),
        None => clean,
    }
}

fn header<'a>(response: &'a HttpResponse, name: &str) -> Option<&'a str> {
    response.headers().get(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_win_over_statuses() {
        assert_eq!(kind_of("NoSuchUpload", 404), K::NotFound);
        assert_eq!(kind_of("PreconditionFailed", 412), K::AlreadyExists);
        assert_eq!(kind_of("ConditionalRequestConflict", 409), K::Transient);
        assert_eq!(kind_of("InternalError", 200), K::Transient);
        assert_eq!(kind_of("RequestTimeout", 400), K::Transient);
        assert_eq!(kind_of("ExpiredToken", 400), K::Denied);
        assert_eq!(kind_of("BadDigest", 400), K::Checksum);
        assert_eq!(kind_of("", 503), K::Transient);
        assert_eq!(kind_of("Strange", 400), K::Other);
        assert_eq!(kind_of("", 507), K::Full);
    }

    #[test]
    fn skew_says_which_way() {
        let there = Some("Thu, 01 Jan 1970 00:01:40 GMT");
        let at = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        assert!(skew(there, at(1000)).contains("by 900 s: it is fast"));
        assert!(skew(there, at(0)).contains("by 100 s: it is slow"));
        assert!(skew(Some("yesterday"), at(0)).contains("differs from the store's;"));
    }

    #[test]
    fn texts_are_short_and_clean() {
        assert_eq!(shorten("a\nb"), "a b");
        assert!(shorten(&"ü".repeat(1000)).len() < 1000);
    }
}
