// One S3 operation by @aws-sdk/client-s3, for the client round trip. Settings come from AWS_*.
import { createReadStream, createWriteStream } from "node:fs";
import { PassThrough } from "node:stream";
import { pipeline } from "node:stream/promises";
import {
  CreateBucketCommand,
  DeleteBucketCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  ListObjectsV2Command,
  S3Client,
} from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";

const client = new S3Client({ endpoint: process.env.AWS_ENDPOINT_URL, forcePathStyle: true });
const [operation, Bucket, Key, file] = process.argv.slice(2);

const operations = {
  "make-bucket": () => client.send(new CreateBucketCommand({ Bucket })),
  "remove-bucket": () => client.send(new DeleteBucketCommand({ Bucket })),
  delete: () => client.send(new DeleteObjectCommand({ Bucket, Key })),
  async upload() {
    // A PassThrough has no length that the SDK could look up.
    const Body = createReadStream(file).pipe(new PassThrough());
    await new Upload({ client, params: { Bucket, Key, Body } }).done();
  },
  async download() {
    const answer = await client.send(new GetObjectCommand({ Bucket, Key }));
    await pipeline(answer.Body, createWriteStream(file));
  },
  async keys() {
    const answer = await client.send(new ListObjectsV2Command({ Bucket }));
    for (const entry of answer.Contents ?? []) console.log(entry.Key);
  },
};
await operations[operation]();
