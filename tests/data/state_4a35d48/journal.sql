BEGIN TRANSACTION;
CREATE TABLE coverage (
    room TEXT NOT NULL,
    start INTEGER NOT NULL,
    "end" INTEGER NOT NULL,
    state TEXT NOT NULL,
    cause TEXT,
    "from" TEXT NOT NULL,
    until TEXT NOT NULL
);
INSERT INTO "coverage" VALUES('desk',0,5440,'transcribed',NULL,'2026-11-29T22:23:25.253701+00:00','2026-11-29T22:23:25.933701+00:00');
INSERT INTO "coverage" VALUES('desk',0,22400,'captured',NULL,'2026-11-29T22:23:25.253701+00:00','2026-11-29T22:23:28.053701+00:00');
INSERT INTO "coverage" VALUES('desk',5440,11840,'silent',NULL,'2026-11-29T22:23:25.933701+00:00','2026-11-29T22:23:26.733701+00:00');
INSERT INTO "coverage" VALUES('desk',11840,17280,'transcribed',NULL,'2026-11-29T22:23:26.733701+00:00','2026-11-29T22:23:27.413701+00:00');
INSERT INTO "coverage" VALUES('desk',17280,22400,'silent',NULL,'2026-11-29T22:23:27.413701+00:00','2026-11-29T22:23:28.053701+00:00');
INSERT INTO "coverage" VALUES('hall',0,25600,'captured',NULL,'2026-11-29T22:23:25.331018+00:00','2026-11-29T22:23:28.531018+00:00');
INSERT INTO "coverage" VALUES('hall',0,25600,'silent',NULL,'2026-11-29T22:23:25.331018+00:00','2026-11-29T22:23:28.531018+00:00');
CREATE TABLE events (
    -- AUTOINCREMENT: without it pruning would let numbers come again, below every cursor.
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    room TEXT NOT NULL,
    kind TEXT NOT NULL,
    position INTEGER NOT NULL,
    at TEXT NOT NULL,
    body TEXT NOT NULL
);
INSERT INTO "events" VALUES(1,'01a22967-e915-71ab-9577-ef30155d6aba','desk','recording_started',0,'2026-11-29T22:23:25.260144+00:00','{"kind":"recording_started","seq":1,"id":"01a22967-e915-71ab-9577-ef30155d6aba","room":"desk","position":0,"at":"2026-11-29T22:23:25.260144Z","rate":8000,"source":"command python3"}');
INSERT INTO "events" VALUES(2,'01a22967-e94a-718d-9522-977bbc3d6fc2','desk','session_started',0,'2026-11-29T22:23:25.260144+00:00','{"kind":"session_started","seq":2,"id":"01a22967-e94a-718d-9522-977bbc3d6fc2","room":"desk","position":0,"at":"2026-11-29T22:23:25.260144Z","session_id":"00000000-0000-4000-8000-000000000000","endpoint":"ws://127.0.0.1:44869/v3/ws","speech_model":"universal-3-5-pro","expires_at":"2026-11-30T01:23:25Z"}');
INSERT INTO "events" VALUES(3,'01a22967-e95f-7b8f-af1b-eb2173f5257e','hall','recording_started',0,'2026-11-29T22:23:25.331018+00:00','{"kind":"recording_started","seq":3,"id":"01a22967-e95f-7b8f-af1b-eb2173f5257e","room":"hall","position":0,"at":"2026-11-29T22:23:25.331018Z","rate":8000,"source":"command python3"}');
INSERT INTO "events" VALUES(4,'01a22967-e980-76ce-86d3-cb82d163c5e0','hall','session_started',0,'2026-11-29T22:23:25.331018+00:00','{"kind":"session_started","seq":4,"id":"01a22967-e980-76ce-86d3-cb82d163c5e0","room":"hall","position":0,"at":"2026-11-29T22:23:25.331018Z","session_id":"00000001-0000-4000-8000-000000000000","endpoint":"ws://127.0.0.1:44869/v3/ws","speech_model":"universal-3-5-pro","expires_at":"2026-11-30T01:23:25Z"}');
INSERT INTO "events" VALUES(5,'01a22967-ee00-74d0-b122-47c2a7a921e9','desk','turn',0,'2026-11-29T22:23:25.253701+00:00','{"kind":"turn","seq":5,"id":"01a22967-ee00-74d0-b122-47c2a7a921e9","room":"desk","position":0,"at":"2026-11-29T22:23:25.253701Z","session_id":"00000000-0000-4000-8000-000000000000","turn_order":0,"text":"W1 w2.","words":[{"text":"W1","start":0,"end":2240,"confidence":0.962965,"speaker":null},{"text":"w2.","start":3200,"end":5440,"confidence":0.879259,"speaker":null}],"language":null,"speaker":null,"supersedes":null}');
INSERT INTO "events" VALUES(6,'01a22967-f42b-72a0-8338-a23e1ba593c8','desk','audio',0,'2026-11-29T22:23:25.253701+00:00','{"kind":"audio","seq":6,"id":"01a22967-f42b-72a0-8338-a23e1ba593c8","room":"desk","position":0,"at":"2026-11-29T22:23:25.253701Z","samples":22400,"rate":8000,"file":"/var/lib/roomtone/state/spool/desk/0000000000000000_20261129T222325.253701Z.pcm","fresh":false}');
INSERT INTO "events" VALUES(7,'01a22967-f42b-7486-b94a-0d5b2d4c6272','desk','recording_stopped',22400,'2026-11-29T22:23:28.053701+00:00','{"kind":"recording_stopped","seq":7,"id":"01a22967-f42b-7486-b94a-0d5b2d4c6272","room":"desk","position":22400,"at":"2026-11-29T22:23:28.053701Z","reason":"ended"}');
INSERT INTO "events" VALUES(8,'01a22967-f43a-73ed-b964-0ec5bac6cfab','desk','turn',11840,'2026-11-29T22:23:26.733701+00:00','{"kind":"turn","seq":8,"id":"01a22967-f43a-73ed-b964-0ec5bac6cfab","room":"desk","position":11840,"at":"2026-11-29T22:23:26.733701Z","session_id":"00000000-0000-4000-8000-000000000000","turn_order":1,"text":"W3 w4.","words":[{"text":"W3","start":11840,"end":14080,"confidence":0.809716,"speaker":null},{"text":"w4.","start":15040,"end":17280,"confidence":0.937034,"speaker":null}],"language":null,"speaker":null,"supersedes":null}');
INSERT INTO "events" VALUES(9,'01a22967-f43f-782e-865f-60d60bcd1cc7','desk','session_ended',22400,'2026-11-29T22:23:28.053701+00:00','{"kind":"session_ended","seq":9,"id":"01a22967-f43f-782e-865f-60d60bcd1cc7","room":"desk","position":22400,"at":"2026-11-29T22:23:28.053701Z","session_id":"00000000-0000-4000-8000-000000000000","audio_seconds":3.0,"session_seconds":3.0,"reason":"terminated"}');
INSERT INTO "events" VALUES(10,'01a22967-f590-7a94-a2c2-d721225e7dee','hall','audio',0,'2026-11-29T22:23:25.331018+00:00','{"kind":"audio","seq":10,"id":"01a22967-f590-7a94-a2c2-d721225e7dee","room":"hall","position":0,"at":"2026-11-29T22:23:25.331018Z","samples":25600,"rate":8000,"file":"/var/lib/roomtone/state/spool/hall/0000000000000000_20261129T222325.331018Z.pcm","fresh":false}');
INSERT INTO "events" VALUES(11,'01a22967-f590-7a94-a2c2-d721225e7def','hall','recording_stopped',25600,'2026-11-29T22:23:28.531018+00:00','{"kind":"recording_stopped","seq":11,"id":"01a22967-f590-7a94-a2c2-d721225e7def","room":"hall","position":25600,"at":"2026-11-29T22:23:28.531018Z","reason":"muted"}');
INSERT INTO "events" VALUES(12,'01a22967-f590-7a94-a2c2-d721225e7df0','hall','muted',25600,'2026-11-29T22:23:28.641574+00:00','{"kind":"muted","seq":12,"id":"01a22967-f590-7a94-a2c2-d721225e7df0","room":"hall","position":25600,"at":"2026-11-29T22:23:28.641574Z","until":null}');
INSERT INTO "events" VALUES(13,'01a22967-f5c3-79a0-9092-db5bf2e570ba','hall','session_ended',25600,'2026-11-29T22:23:28.531018+00:00','{"kind":"session_ended","seq":13,"id":"01a22967-f5c3-79a0-9092-db5bf2e570ba","room":"hall","position":25600,"at":"2026-11-29T22:23:28.531018Z","session_id":"00000001-0000-4000-8000-000000000000","audio_seconds":3.0,"session_seconds":3.0,"reason":"terminated"}');
CREATE TABLE marks (key TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO "marks" VALUES('sink/count/proof','{"digest":"4b84e28d693d4171","left":987}');
INSERT INTO "marks" VALUES('budget/told','{"is_spent":false,"reached":{"daily":{"when":"2026-11-29","limit":100.0,"stage":0}}}');
INSERT INTO "marks" VALUES('sink/picky/proof','{"digest":"fdc6edc6f8b341aa","left":998}');
INSERT INTO "marks" VALUES('sink/waiting/proof','{"digest":"ee02ceed9f614b8a","left":987}');
INSERT INTO "marks" VALUES('sink/lines/proof','{"digest":"26f8c9e2da5199b0","left":987}');
INSERT INTO "marks" VALUES('calendar','["2026-11-29T22:23:24.613888+00:00","2026-11-29T22:23:24.613888+00:00",null]');
INSERT INTO "marks" VALUES('room/desk/rate','8000');
INSERT INTO "marks" VALUES('spent/2026-11-29/desk','{"seconds":3.000001,"sessions":0.000375,"requests":0,"unpriced":0,"input_tokens":0,"output_tokens":0,"models":0.0}');
INSERT INTO "marks" VALUES('room/hall/rate','8000');
INSERT INTO "marks" VALUES('spent/2026-11-29/hall','{"seconds":3.0,"sessions":0.000375,"requests":0,"unpriced":0,"input_tokens":0,"output_tokens":0,"models":0.0}');
INSERT INTO "marks" VALUES('room/desk/acknowledged','22400');
INSERT INTO "marks" VALUES('room/desk/audio','22400');
INSERT INTO "marks" VALUES('room/desk/stopped','{"position":22400,"at":"2026-11-29T22:23:28.053701Z","cause":"daemon down"}');
INSERT INTO "marks" VALUES('room/hall/audio','25600');
INSERT INTO "marks" VALUES('room/hall/stopped','{"position":25600,"at":"2026-11-29T22:23:28.531018Z","cause":"muted"}');
INSERT INTO "marks" VALUES('room/hall/muted','{"until":null}');
INSERT INTO "marks" VALUES('room/hall/acknowledged','25600');
INSERT INTO "marks" VALUES('sink/waiting/paused','{"at":"2026-11-29T22:23:31.333035Z","by":"person","reason":"somebody has paused it"}');
INSERT INTO "marks" VALUES('room/desk/holes','[[0,4000]]');
INSERT INTO "marks" VALUES('journal/clean','true');
CREATE TABLE refused (
    sink TEXT NOT NULL,
    seq INTEGER NOT NULL,
    at TEXT NOT NULL,
    reason TEXT NOT NULL,
    body TEXT,
    PRIMARY KEY (sink, seq)
);
INSERT INTO "refused" VALUES('picky',5,'2026-11-29T22:23:26.824730+00:00','the first turn is never wanted','{"kind":"turn","seq":5,"id":"01a22967-ee00-74d0-b122-47c2a7a921e9","room":"desk","position":0,"at":"2026-11-29T22:23:25.253701Z","session_id":"00000000-0000-4000-8000-000000000000","turn_order":0,"text":"W1 w2.","words":[{"text":"W1","start":0,"end":2240,"confidence":0.962965,"speaker":null},{"text":"w2.","start":3200,"end":5440,"confidence":0.879259,"speaker":null}],"language":null,"speaker":null,"supersedes":null}');
CREATE TABLE sinks (name TEXT PRIMARY KEY, cursor INTEGER NOT NULL, at TEXT NOT NULL);
INSERT INTO "sinks" VALUES('count',13,'2026-11-29T22:23:28.780167+00:00');
INSERT INTO "sinks" VALUES('picky',13,'2026-11-29T22:23:34.793028+00:00');
INSERT INTO "sinks" VALUES('waiting',13,'2026-11-29T22:23:28.777912+00:00');
INSERT INTO "sinks" VALUES('lines',13,'2026-11-29T22:23:28.778949+00:00');
CREATE INDEX events_by_position ON events (room, kind, position);
CREATE INDEX coverage_by_end ON coverage (room, state, "end");
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',13);
COMMIT;
PRAGMA user_version = 1;
