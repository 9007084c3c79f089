//! Makes a request of gRPC of the text of a JSON one, once all of it has come.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::{JsonCall, transcode};
use crate::gateway::etcd::EtcdError;
use crate::limits;

/// Puts what turns JSON requests into those of gRPC around the services.
#[derive(Clone, Copy)]
pub(in crate::gateway) struct JsonRequests;

impl<S> Layer<S> for JsonRequests {
    type Service = JsonRequestsService<S>;

    fn layer(&self, inner: S) -> JsonRequestsService<S> {
        JsonRequestsService { inner }
    }
}

/// The services, for requests of both kinds.
#[derive(Clone)]
pub(in crate::gateway) struct JsonRequestsService<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for JsonRequestsService<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(JsonCall { method }) = request.extensions().get().cloned() else {
            return Box::pin(self.inner.call(request));
        };
        // The service that was asked whether it is ready is the one to call.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let framed = match collect(body).await {
                Ok(json) => {
                    transcode::request(&method.input(), method.is_client_streaming(), &json)
                        .map_err(Status::invalid_argument)
                }
                Err(refused) => Err(refused),
            };
            match framed {
                Ok(framed) => {
                    let body = Body::new(Full::new(framed));
                    inner.call(Request::from_parts(parts, body)).await
                }
                Err(refused) => Ok(refused.into_http()),
            }
        })
    }
}

/// All of a request's text.
async fn collect(mut body: Body) -> Result<Bytes, Status> {
    let mut text = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(bytes) = frame?.into_data() else { continue };
        if text.len() + bytes.len() > limits::GATEWAY_JSON_BYTES_MAX {
            return Err(EtcdError::TooLarge.into());
        }
        text.extend_from_slice(&bytes);
    }
    Ok(text.freeze())
}
