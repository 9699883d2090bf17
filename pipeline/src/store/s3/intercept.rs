//! What we change in, and learn from, single requests.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest;
use aws_runtime::auth::PayloadSigningOverride;
use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextMut,
};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint;
use bytes::Bytes;

/// How the payload of one request enters its signature.
#[derive(Debug)]
pub(super) struct Payload(PayloadSigningOverride);

impl Payload {
    /// Not at all: TLS and a checksum protect it, and hashing it would cost more than everything else we do to it.
    pub(super) fn unsigned() -> Self {
        Self(PayloadSigningOverride::UnsignedPayload)
    }

    /// By its SHA-256, for connections that nothing else protects.
    pub(super) fn signed(slices: &[Bytes]) -> Self {
        let mut hash = digest::Context::new(&digest::SHA256);
        for slice in slices {
            hash.update(slice);
        }
        Self(PayloadSigningOverride::Precomputed(hex::encode(hash.finish())))
    }
}

#[dyn_dispatch_hint]
impl Intercept for Payload {
    fn name(&self) -> &'static str {
        "Payload"
    }

    fn modify_before_signing(
        &self,
        _context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        config.interceptor_state().store_put(self.0.clone());
        Ok(())
    }
}

/// Headers that a request carries beyond the SDK's own.
#[derive(Clone, Default)]
pub(super) struct Headers(Arc<[(&'static str, String)]>);

impl Headers {
    /// These, which are valid.
    pub(super) fn new(headers: Vec<(&'static str, String)>) -> Self {
        Self(headers.into())
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be keys.
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

#[dyn_dispatch_hint]
impl Intercept for Headers {
    fn name(&self) -> &'static str {
        "Headers"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let headers = context.request_mut().headers_mut();
        for (name, value) in &*self.0 {
            headers.try_insert(*name, value.clone())?;
        }
        Ok(())
    }
}

/// Keeps the `Date` header of a response, whatever its status.
#[derive(Debug, Clone, Default)]
pub(super) struct DateHeader(Arc<Mutex<Option<String>>>);

impl DateHeader {
    /// The header's text, once there was a response with one.
    pub(super) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[dyn_dispatch_hint]
impl Intercept for DateHeader {
    fn name(&self) -> &'static str {
        "DateHeader"
    }

    fn read_after_transmit(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date").map(str::to_owned);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = date;
        Ok(())
    }
}
