//! Faults.

use super::guard::Audited;
use super::{Api, error, time};
use crate::fault::{Counts, Fault, Faults, NotAdded};
use prost_types::Duration as PbDuration;
use service::config::{Bdev, Kind};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Code, Request, Response, Status};
use vireo_api::v1::fault_service_server::FaultService;
use vireo_api::v1::{
    self, CreateFaultRequest, DeleteFaultRequest, DeleteFaultResponse, FaultOperation, FaultStatus,
    GetFaultRequest, ListFaultsRequest, ListFaultsResponse, fault,
};
use vireo_proto::handoff::fault as told;
use vireo_proto::handoff::{self, DescribeBdev, FaultError, reply, request};

const PATTERN: &str = "volumes/{volume}/faults/{fault}";
/// Stands for any name.
const ANY: &str = "-";
/// Longest last part of a name.
const MAX_ID: usize = 32;
/// Longest delay, and longest time for which requests hang: a worker cannot let go of a queue before that.
const LONGEST: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(300));

#[tonic::async_trait]
impl FaultService for Api {
    async fn get_fault(
        &self,
        request: Request<GetFaultRequest>,
    ) -> Result<Response<v1::Fault>, Status> {
        let faults = self.faults()?;
        let name = request.into_inner().name;
        let (volume, id) = parts(&name)?;
        let found = faults.list(&self.manager.config()).into_iter();
        let mut found = found.filter(|(fault, _)| fault.volume == volume && fault.id == id);
        let (fault, counts) = found.next().ok_or_else(|| error::missing(&name))?;
        self.shown(&fault, counts).await.map(Response::new)
    }

    async fn list_faults(
        &self,
        request: Request<ListFaultsRequest>,
    ) -> Result<Response<ListFaultsResponse>, Status> {
        let faults = self.faults()?;
        let parent = request.into_inner().parent;
        let volume = volume_of(&parent)?;
        let config = self.manager.config();
        if volume != ANY && config.bdev(volume).is_none() {
            return Err(error::missing(&parent));
        }
        let mut shown = Vec::new();
        for (fault, counts) in faults.list(&config) {
            if volume == ANY || fault.volume == volume {
                shown.push(self.shown(&fault, counts).await?);
            }
        }
        Ok(Response::new(ListFaultsResponse { faults: shown }))
    }

    async fn create_fault(
        &self,
        request: Request<CreateFaultRequest>,
    ) -> Result<Response<v1::Fault>, Status> {
        let faults = self.faults()?;
        let CreateFaultRequest { parent, fault_id, fault, validate_only } = request.into_inner();
        let wanted = fault.ok_or_else(|| error::invalid("fault", "is missing"))?;
        let config = self.manager.config();
        let volume = volume_of(&parent)?;
        let bdev = config.bdev(volume).ok_or_else(|| error::missing(&parent))?;
        if !fault_id.is_empty() && !is_id(&fault_id) {
            let text = format!("write 1 to {MAX_ID} letters, digits, \".\", \"_\" and \"-\"");
            return Err(error::invalid("fault_id", text));
        }
        let block = self.block_size(bdev).await?;
        let told = translate(&wanted, volume, block)?;
        // Those of volumes that are gone make room.
        faults.list(&config);
        let fault = Fault { volume: volume.to_owned(), id: fault_id, told };
        let fault = faults.add(fault, validate_only).map_err(|not| match not {
            NotAdded::Exists => {
                error::refuse(Code::AlreadyExists, error::reason::EXISTS, "this fault is there")
            }
            NotAdded::TooMany => {
                let text = "there are too many faults already: delete one";
                error::refuse(Code::ResourceExhausted, error::reason::TOO_MUCH, text)
            }
        })?;
        if !validate_only && let Err(line) = faults.settled().await {
            faults.remove(|other| other.told.id == fault.told.id, false);
            return Err(error::refuse(Code::Unavailable, error::reason::UNAVAILABLE, line));
        }
        let shown = self.shown(&fault, Counts::default()).await?;
        let audited = Audited(shown.name.clone());
        let mut response = Response::new(shown);
        response.extensions_mut().insert(audited);
        Ok(response)
    }

    async fn delete_fault(
        &self,
        request: Request<DeleteFaultRequest>,
    ) -> Result<Response<DeleteFaultResponse>, Status> {
        let faults = self.faults()?;
        let request = request.into_inner();
        let (volume, id) = parts(&request.name)?;
        let is = |fault: &Fault| {
            (volume == ANY || fault.volume == volume) && (id == ANY || fault.id == id)
        };
        let count = faults.remove(is, request.validate_only);
        if count == 0 && !request.allow_missing && id != ANY {
            return Err(error::missing(&request.name));
        }
        if !request.validate_only {
            let late = |line| error::refuse(Code::Unavailable, error::reason::UNAVAILABLE, line);
            faults.settled().await.map_err(late)?;
        }
        let mut response = Response::new(DeleteFaultResponse { deleted_count: count as u32 });
        response.extensions_mut().insert(Audited(request.name));
        Ok(response)
    }
}

impl Api {
    fn faults(&self) -> Result<&Arc<Faults>, Status> {
        self.faults.as_ref().ok_or_else(|| {
            let text = "faults are off: write fault_injection = true in [api] of the configuration \
                        file, and restart Vireo";
            error::refuse(Code::FailedPrecondition, error::reason::FAULTS_OFF, text)
        })
    }

    /// Bytes of a volume's own logical block; of a drive that has its own, its backend knows.
    async fn block_size(&self, bdev: &Bdev) -> Result<u64, Status> {
        if bdev.block_size != 0 {
            return Ok(bdev.block_size.into());
        }
        let backend = &bdev.backend;
        let unavailable =
            |text: String| error::refuse(Code::Unavailable, error::reason::UNAVAILABLE, text);
        let mut peers = self.manager.peers().iter().filter(|peer| peer.kind == Kind::Backend);
        let session = peers.find(|peer| peer.name == *backend).and_then(|peer| peer.session());
        let session = session.ok_or_else(|| unavailable(format!("backend {backend} is away")))?;
        let body = request::Body::DescribeBdev(DescribeBdev { bdev: bdev.name.clone() });
        match session.call(body, &[]).await.map(|answer| answer.body) {
            Ok(reply::Body::BdevInfo(info)) => Ok(info.block_size.max(1).into()),
            Ok(_) => Err(unavailable(format!("backend {backend} answers something else"))),
            Err(failed) => Err(unavailable(failed.line())),
        }
    }

    async fn shown(&self, fault: &Fault, counts: Counts) -> Result<v1::Fault, Status> {
        let config = self.manager.config();
        let name = format!("volumes/{}/faults/{}", fault.volume, fault.id);
        let bdev = config.bdev(&fault.volume).ok_or_else(|| error::missing(&name))?;
        let block = self.block_size(bdev).await?;
        let handoff::Fault { operations, offset, length, when, effect, .. } = &fault.told;
        let nanoseconds = |ns: &u64| time::duration(Duration::from_nanos(*ns));
        Ok(v1::Fault {
            name,
            // The numbers are the same; see the test.
            operations: operations.clone(),
            first_lba: offset / block,
            lba_count: if *length > u64::MAX / 2 { 0 } else { length / block },
            condition: when.as_ref().map(|when| match when {
                told::When::PerMillion(rate) => fault::Condition::PerMillion(*rate),
                told::When::Every(every) => fault::Condition::Every(*every),
                told::When::Next(next) => fault::Condition::Next(*next),
            }),
            effect: effect.as_ref().map(|effect| match effect {
                told::Effect::Error(code) => {
                    let error = FaultError::try_from(*code).unwrap_or_default();
                    fault::Effect::Status(status(error).into())
                }
                told::Effect::DelayNs(ns) => fault::Effect::Delay(nanoseconds(ns)),
                told::Effect::HangNs(ns) => fault::Effect::Hang(nanoseconds(ns)),
            }),
            seen_count: counts.seen,
            injected_count: counts.hit,
        })
    }
}

/// What workers are told of a fault.
fn translate(wanted: &v1::Fault, volume: &str, block: u64) -> Result<handoff::Fault, Status> {
    let mut operations = Vec::new();
    for code in &wanted.operations {
        let known = FaultOperation::try_from(*code).ok();
        match known.filter(|operation| *operation != FaultOperation::Unspecified) {
            Some(_) => operations.push(*code),
            None => return Err(error::invalid("fault.operations", "has one that is not known")),
        }
    }
    operations.sort_unstable();
    operations.dedup();
    let when = match wanted.condition {
        Some(fault::Condition::PerMillion(rate)) if (1..=1_000_000).contains(&rate) => {
            told::When::PerMillion(rate)
        }
        Some(fault::Condition::PerMillion(_)) => {
            return Err(error::invalid("fault.per_million", "is out of range; write 1 to 1000000"));
        }
        Some(fault::Condition::Every(0)) => {
            return Err(error::invalid("fault.every", "is 0; write 1 for every command"));
        }
        Some(fault::Condition::Every(every)) => told::When::Every(every),
        Some(fault::Condition::Next(0)) => {
            return Err(error::invalid("fault.next", "is 0; write how many are to be hit"));
        }
        Some(fault::Condition::Next(next)) => told::When::Next(next),
        None => {
            let text = "is missing; one of per_million, every and next says which";
            return Err(error::invalid("fault.condition", text));
        }
    };
    let effect = match &wanted.effect {
        Some(fault::Effect::Status(code)) => {
            let error = FaultStatus::try_from(*code).ok().and_then(error_of);
            let error = error.ok_or_else(|| error::invalid("fault.status", "is not known"))?;
            told::Effect::Error(error.into())
        }
        Some(fault::Effect::Delay(delay)) => {
            told::Effect::DelayNs(bounded("fault.delay", delay, LONGEST.0)?)
        }
        Some(fault::Effect::Hang(hang)) => {
            told::Effect::HangNs(bounded("fault.hang", hang, LONGEST.1)?)
        }
        None => {
            let text = "is missing; one of status, delay and hang says what happens";
            return Err(error::invalid("fault.effect", text));
        }
    };
    let bytes = |blocks: u64| blocks.checked_mul(block).filter(|bytes| *bytes <= u64::MAX / 2);
    let offset = bytes(wanted.first_lba);
    let offset = offset.ok_or_else(|| error::invalid("fault.first_lba", "is past every volume"))?;
    let length = match (wanted.first_lba, wanted.lba_count) {
        (0, 0) => Some(0),
        (_, 0) => Some(u64::MAX),
        (_, count) => bytes(count),
    };
    let length = length.ok_or_else(|| error::invalid("fault.lba_count", "is past every volume"))?;
    let (bdev, when, effect) = (volume.to_owned(), Some(when), Some(effect));
    Ok(handoff::Fault { id: 0, bdev, slot: 0, operations, offset, length, when, effect })
}

fn bounded(field: &str, given: &PbDuration, longest: Duration) -> Result<u64, Status> {
    let parsed = time::parse(given).filter(|time| !time.is_zero() && *time <= longest);
    let parsed = parsed.and_then(|time| u64::try_from(time.as_nanos()).ok());
    parsed.ok_or_else(|| {
        let text = format!("is out of range; write more than 0 and up to {} s", longest.as_secs());
        error::invalid(field, text)
    })
}

fn error_of(status: FaultStatus) -> Option<FaultError> {
    Some(match status {
        FaultStatus::Unspecified => return None,
        FaultStatus::MediaError => FaultError::Medium,
        FaultStatus::CapacityExceeded => FaultError::NoSpace,
        FaultStatus::WriteProtected => FaultError::ReadOnly,
        FaultStatus::CommandInterrupted => FaultError::Busy,
        FaultStatus::InternalError => FaultError::Internal,
        FaultStatus::DataTransferError => FaultError::Transfer,
        FaultStatus::LbaOutOfRange => FaultError::OutOfRange,
        FaultStatus::CompareFailure => FaultError::CompareFailed,
        FaultStatus::InvalidOpcode => FaultError::Unsupported,
    })
}

fn status(error: FaultError) -> FaultStatus {
    match error {
        FaultError::Unspecified => FaultStatus::Unspecified,
        FaultError::Medium => FaultStatus::MediaError,
        FaultError::NoSpace => FaultStatus::CapacityExceeded,
        FaultError::ReadOnly => FaultStatus::WriteProtected,
        FaultError::Busy => FaultStatus::CommandInterrupted,
        FaultError::Internal => FaultStatus::InternalError,
        FaultError::Transfer => FaultStatus::DataTransferError,
        FaultError::OutOfRange => FaultStatus::LbaOutOfRange,
        FaultError::CompareFailed => FaultStatus::CompareFailure,
        FaultError::Unsupported => FaultStatus::InvalidOpcode,
    }
}

fn volume_of(parent: &str) -> Result<&str, Status> {
    let volume = parent.strip_prefix("volumes/");
    volume.filter(|volume| !volume.is_empty() && !volume.contains('/')).ok_or_else(|| {
        error::invalid("parent", format!("\"{parent}\" is not like volumes/{{volume}}"))
    })
}

fn is_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_ID).contains(&id.len()) && id != ANY && id.bytes().all(plain)
}

fn parts(name: &str) -> Result<(&str, &str), Status> {
    match name.split('/').collect::<Vec<_>>().as_slice() {
        ["volumes", volume, "faults", fault] if !volume.is_empty() && !fault.is_empty() => {
            Ok((*volume, *fault))
        }
        _ => Err(error::invalid("name", format!("\"{name}\" is not like {PATTERN}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_calls_an_operation_is_the_same_to_workers() {
        for code in 0..20 {
            let ours = FaultOperation::try_from(code).map(|known| known.as_str_name());
            let theirs = handoff::FaultOperation::try_from(code).map(|known| known.as_str_name());
            assert_eq!(ours.ok(), theirs.ok(), "{code}");
        }
    }

    #[test]
    fn a_status_comes_back_as_it_was() {
        for code in 1..20 {
            let Ok(known) = FaultStatus::try_from(code) else { continue };
            assert_eq!(error_of(known).map(status), Some(known));
        }
        assert_eq!(error_of(FaultStatus::Unspecified), None);
    }

    #[test]
    fn each_mistake_names_its_field() {
        let good = v1::Fault {
            operations: vec![FaultOperation::Read.into()],
            first_lba: 8,
            lba_count: 2,
            condition: Some(fault::Condition::Every(1)),
            effect: Some(fault::Effect::Status(FaultStatus::MediaError.into())),
            ..v1::Fault::default()
        };
        let told = translate(&good, "v", 4096).unwrap();
        assert_eq!((told.offset, told.length), (8 * 4096, 2 * 4096));
        let delay = |seconds| Some(fault::Effect::Delay(PbDuration { seconds, nanos: 0 }));
        let cases = [
            ("fault.operations", v1::Fault { operations: vec![0], ..good.clone() }),
            ("fault.operations", v1::Fault { operations: vec![99], ..good.clone() }),
            ("fault.condition", v1::Fault { condition: None, ..good.clone() }),
            (
                "fault.every",
                v1::Fault { condition: Some(fault::Condition::Every(0)), ..good.clone() },
            ),
            (
                "fault.next",
                v1::Fault { condition: Some(fault::Condition::Next(0)), ..good.clone() },
            ),
            (
                "fault.per_million",
                v1::Fault {
                    condition: Some(fault::Condition::PerMillion(1_000_001)),
                    ..good.clone()
                },
            ),
            ("fault.effect", v1::Fault { effect: None, ..good.clone() }),
            ("fault.status", v1::Fault { effect: Some(fault::Effect::Status(77)), ..good.clone() }),
            ("fault.delay", v1::Fault { effect: delay(61), ..good.clone() }),
            ("fault.delay", v1::Fault { effect: delay(-1), ..good.clone() }),
            ("fault.first_lba", v1::Fault { first_lba: u64::MAX, ..good.clone() }),
            ("fault.lba_count", v1::Fault { lba_count: u64::MAX, ..good.clone() }),
        ];
        for (field, fault) in cases {
            let status = translate(&fault, "v", 512).unwrap_err();
            assert!(status.message().starts_with(field), "{field}: {status:?}");
        }
    }

    #[test]
    fn names_have_their_parts() {
        assert_eq!(parts("volumes/v/faults/f").unwrap(), ("v", "f"));
        for name in
            ["", "volumes/v", "volumes//faults/f", "volumes/v/faults/", "volumes/v/faults/f/x"]
        {
            assert!(parts(name).is_err(), "{name}");
        }
        assert!(is_id("a.b_c-1") && !is_id("-") && !is_id("") && !is_id("a/b"));
        assert!(!is_id(&"x".repeat(MAX_ID + 1)));
    }
}
