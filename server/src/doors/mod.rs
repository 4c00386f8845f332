//! Front doors: bytes of a protocol to service calls and back, nothing else.
//!
//! Owns: one file per protocol. Never: state beyond a connection.

pub mod admin;
pub mod kv;

use mainstay_proto::v1::ErrorDetail;
use prost::Message;
use tonic::{Code as GrpcCode, Status};

use crate::service::{Class, Code, Failure};

/// Most bytes of one gRPC message, both ways: a maximal batch and some room.
pub const MESSAGE_BYTES_MAX: usize = 24 << 20;

/// A failure as the wire carries it: status, text, and an [`ErrorDetail`].
#[must_use]
pub fn status(f: Failure) -> Status {
    let grpc = match f.code {
        Code::NotPrimary | Code::NotReady => GrpcCode::Unavailable,
        Code::Overloaded | Code::DiskFull => GrpcCode::ResourceExhausted,
        Code::ConditionFailed | Code::NotPromoted | Code::NotReseeded => GrpcCode::FailedPrecondition,
        Code::Limit | Code::BadRequest => GrpcCode::InvalidArgument,
        Code::Indeterminate => GrpcCode::Unknown,
        Code::Stopped | Code::Archive | Code::ReadFailed => GrpcCode::Internal,
        Code::LogGone | Code::HistoryGone => GrpcCode::OutOfRange,
        Code::NoRepository => GrpcCode::FailedPrecondition,
        Code::Corruption => GrpcCode::DataLoss,
        Code::NoCopy => GrpcCode::NotFound,
    };
    let class = if f.class == Class::NotExecuted { Class::NotExecuted } else { f.class };
    let detail = ErrorDetail {
        code: f.code.as_str().to_owned(),
        class: class.as_str().to_owned(),
        primary: f.primary,
        epoch: f.epoch,
    };
    Status::with_details(grpc, f.message, detail.encode_to_vec().into())
}
