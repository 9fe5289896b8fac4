//! What S3 says that the bytes of an object sum up to.
//!
//! <https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html>

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::{ChecksumType, ServerSideEncryption};

use crate::remote::Version;
use crate::remote::checksum::{Algorithm, Checksum};

/// How the names of buckets end whose etags are no MD5.
const DIRECTORY_BUCKET: &str = "--x-s3";

/// The checksum of the whole object, the cheapest first. A checksum of checksums of its
/// parts is none. Without any, the etag, where it is an MD5: of an object in one part that
/// is encrypted with no key but S3's own.
pub(super) fn of_whole(answer: &HeadObjectOutput, bucket: &str) -> Option<Checksum> {
    if answer.checksum_type() != Some(&ChecksumType::Composite) {
        let told = [
            (Algorithm::Crc32c, answer.checksum_crc32_c()),
            (Algorithm::Crc64Nvme, answer.checksum_crc64_nvme()),
            (Algorithm::Crc32, answer.checksum_crc32()),
            (Algorithm::Sha256, answer.checksum_sha256()),
        ];
        let told = told.into_iter().find_map(|(how, text)| Checksum::of_base64(how, text?));
        if told.is_some() {
            return told;
        }
    }
    let is_plain =
        matches!(answer.server_side_encryption(), None | Some(ServerSideEncryption::Aes256))
            && answer.sse_customer_algorithm().is_none();
    let etag = answer.e_tag().filter(|_| is_plain && !bucket.ends_with(DIRECTORY_BUCKET))?;
    Checksum::of_hex(Algorithm::Md5, &Version::from_etag(etag).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MD5: &str = "25f9e794323b453885f5181f1b624d0b";

    #[test]
    fn only_what_is_of_the_whole_counts() {
        let answer = HeadObjectOutput::builder().e_tag(format!("\"{MD5}\""));
        let md5 = Checksum::of_hex(Algorithm::Md5, MD5);
        let of = |answer: &HeadObjectOutput| of_whole(answer, "bucket");
        assert_eq!(of(&answer.clone().build()), md5);
        assert_eq!(of_whole(&answer.clone().build(), "b--use1-az4--x-s3"), None);
        for encrypted in [
            answer.clone().server_side_encryption(ServerSideEncryption::AwsKms),
            answer.clone().sse_customer_algorithm("AES256"),
            answer.clone().e_tag(format!("\"{MD5}-2\"")),
        ] {
            assert_eq!(of(&encrypted.build()), None);
        }
        let crc = answer.checksum_crc32_c("4waSgw==").checksum_sha256("nothing");
        let whole = crc.clone().checksum_type(ChecksumType::FullObject).build();
        assert_eq!(of(&whole), Checksum::of_hex(Algorithm::Crc32c, "e3069283"));
        let parts = crc.e_tag("x-2").checksum_type(ChecksumType::Composite).build();
        assert_eq!(of(&parts), None);
    }
}
