// A client for `pg-mlx worker` (docs/protocol.md) with Foundation alone: Process and Codable.
//
// NOT COMPILED: this file was written where there is no Swift compiler. Expect to mend a line or two.
//
//     let client = try await PaliGemmaClient(worker: URL(fileURLWithPath: "/path/to/pg-mlx"))
//     for try await event in client.stream(prompt: "detect cat", picture: try Data(contentsOf: url)) {
//         switch event {
//         case .text(let text): print(text, terminator: "")
//         case .region(let region): print(region.label, region.box)
//         case .done(let answer): print(answer.stats)
//         }
//     }

import Foundation

struct Region: Decodable, Sendable {
    let label: String
    /// x0, y0, x1, y1 in pixels of the picture.
    let box: [Double]
    let boxNormalized: [Double]
    let score: Double?
}

struct Answer: Decodable, Sendable {
    let text: String
    let finishReason: String
    let regions: [Region]
    let width: Int
    let height: Int
    let stats: [String: Double]
}

enum Event: Sendable {
    case text(String)
    case region(Region)
    case done(Answer)
}

/// code: one of the codes in docs/protocol.md.
struct WorkerError: Error, Sendable {
    let code: String
    let message: String
}

/// One worker process, supervised: a crash fails the requests in flight with `worker_died`, and the next ones are answered
/// by a new worker. Make another client only if the supervisor itself has ended (`the worker has ended`).
actor PaliGemmaClient {
    private struct Hello: Encodable {
        let type = "hello"
        let id: Int
        let protocols = [1]
    }

    private struct Load: Encodable {
        let type = "load"
        let id: Int
        let model: String?
    }

    private struct Generate: Encodable {
        struct Picture: Encodable { let bytes: Int }
        let type = "generate"
        let id: Int
        let prompt: String
        let images: [Picture]
        let maxTokens: Int
    }

    private struct Cancel: Encodable {
        let type = "cancel"
        let id: Int
        let request: Int
    }

    /// What all messages of the worker have; the rest is decoded by type.
    private struct Head: Decodable {
        let type: String
        let id: Int?
    }

    private struct Failure: Decodable {
        let code: String
        let message: String
    }

    private struct TextMessage: Decodable { let text: String }
    private struct RegionMessage: Decodable { let region: Region }

    private typealias Listener = @Sendable (Result<(type: String, line: Data), WorkerError>) -> Void

    private let process = Process()
    private let input = Pipe()
    private let output = Pipe()
    private var listeners: [Int: Listener] = [:]
    private var nextId = 0
    private var ended = false

    private static let encoder: JSONEncoder = {
        let encoder = JSONEncoder()
        encoder.keyEncodingStrategy = .convertToSnakeCase
        return encoder
    }()

    private static let decoder: JSONDecoder = {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        return decoder
    }()

    /// Starts the worker and loads a model: a folder or hub repository, or the bundled demo if nil.
    init(worker: URL, model: String? = nil) async throws {
        signal(SIGPIPE, SIG_IGN)  // writing to a worker that has died is an error, not our end
        process.executableURL = worker
        process.arguments = ["worker", "--supervise"]
        process.standardInput = input
        process.standardOutput = output
        try process.run()
        let lines = output.fileHandleForReading.bytes.lines
        Task { [weak self] in
            do {
                for try await line in lines { await self?.receive(Data(line.utf8)) }
            } catch {}
            await self?.end()
        }
        try await ask { Hello(id: $0) }
        try await ask { Load(id: $0, model: model) }
    }

    /// The answer as it comes. Ending the loop or its task cancels the request.
    nonisolated func stream(
        prompt: String, picture: Data, maxTokens: Int = 256
    ) -> AsyncThrowingStream<Event, Error> {
        AsyncThrowingStream { continuation in
            let task = Task {
                await self.begin(prompt: prompt, picture: picture, maxTokens: maxTokens, continuation)
            }
            continuation.onTermination = { reason in
                guard case .cancelled = reason else { return }
                Task { await self.cancel(task.value) }
            }
        }
    }

    /// Ends the worker once what was accepted is answered, since its stdin ends.
    func close() {
        try? input.fileHandleForWriting.close()
    }

    private func begin(
        prompt: String, picture: Data, maxTokens: Int, _ continuation: AsyncThrowingStream<Event, Error>.Continuation
    ) -> Int {
        send(
            { Generate(id: $0, prompt: prompt, images: [.init(bytes: picture.count)], maxTokens: maxTokens) },
            frame: picture
        ) { result in
            do {
                let (type, line) = try result.get()
                switch type {
                case "text":
                    continuation.yield(.text(try Self.decoder.decode(TextMessage.self, from: line).text))
                case "region":
                    continuation.yield(.region(try Self.decoder.decode(RegionMessage.self, from: line).region))
                case "done":
                    continuation.yield(.done(try Self.decoder.decode(Answer.self, from: line)))
                    continuation.finish()
                default:
                    break  // of a later version
                }
            } catch {
                continuation.finish(throwing: error)
            }
        }
    }

    private func cancel(_ request: Int) {
        guard listeners[request] != nil else { return }
        _ = send({ Cancel(id: $0, request: request) }, frame: nil) { _ in }
    }

    /// Waits for the last message of a request.
    private func ask<Message: Encodable>(_ make: (Int) -> Message) async throws {
        try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Void, Error>) in
            _ = send(make, frame: nil) { result in
                switch result {
                case .failure(let error): continuation.resume(throwing: error)
                case .success((let type, _)) where type != "progress": continuation.resume()
                case .success: break
                }
            }
        }
    }

    private func send<Message: Encodable>(
        _ make: (Int) -> Message, frame: Data?, _ listener: @escaping Listener
    ) -> Int {
        let id = nextId
        nextId += 1
        guard !ended, var data = try? Self.encoder.encode(make(id)) else {
            listener(.failure(WorkerError(code: "worker_died", message: "the worker has ended")))
            return id
        }
        listeners[id] = listener
        data.append(0x0A)
        if let frame { data.append(frame) }
        try? input.fileHandleForWriting.write(contentsOf: data)  // if it has died, the end of its stdout tells
        return id
    }

    private func receive(_ line: Data) {
        guard let head = try? Self.decoder.decode(Head.self, from: line), let id = head.id else { return }
        let partial = ["progress", "text", "region"].contains(head.type)
        guard let listener = partial ? listeners[id] : listeners.removeValue(forKey: id) else { return }
        if head.type == "error", let failure = try? Self.decoder.decode(Failure.self, from: line) {
            listener(.failure(WorkerError(code: failure.code, message: failure.message)))
        } else {
            listener(.success((head.type, line)))
        }
    }

    private func end() {
        ended = true
        let left = listeners.values
        listeners = [:]
        for listener in left {
            listener(.failure(WorkerError(code: "worker_died", message: "the worker has ended")))
        }
    }
}
