"""Deliveries to the platform, verified by the PyPI package standardwebhooks and read by cloudevents."""

import base64
import datetime
import json
import unittest

from cloudevents.v1.http import from_http
from dingtalk.crypto import DingTalkCrypto
from standardwebhooks import Webhook, WebhookVerificationError

import daemon

NEW = "whsec_" + base64.b64encode(b"the key of this month 0123456789").decode()
OLD = "whsec_" + base64.b64encode(b"the key of last month 0123456789").decode()
STRANGE = "whsec_" + base64.b64encode(b"a key that nobody gave to anyone").decode()

# Spacing, escapes and numbers that any JSON library would write differently.
RAW = (
    '{ "EventType" : "chat_update_title","eventId":"interop-raw", "timeStamp":1.70e12 ,'
    '"TimeStamp":"1700000000123","title":"\\u503c班\\/\\ud83d\\udd14",'
    '"openConversationId":"cidAb+cd/Ef==","operator":"manager0001",\t"n":[1.0,1e2,-0] }'
)


def upstream(name, url, more=""):
    return f'[[upstreams]]\nname = "{name}"\nurl = "{url}"\nsecret = "{NEW}"\n{more}\n'


class StandardWebhooks(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.plain = cls.enterClassContext(daemon.Receiver())
        cls.rotating = cls.enterClassContext(daemon.Receiver())
        # Refuses once, so that the same event comes twice.
        cls.again = cls.enterClassContext(daemon.Receiver(answers=[503]))
        dingd = cls.enterClassContext(
            daemon.Daemon(
                upstream("plain", cls.plain.url)
                + upstream("rotating", cls.rotating.url, f'secret_previous = "{OLD}"')
                + upstream("again", cls.again.url)
            )
        )
        crypto = DingTalkCrypto(daemon.CALLBACK_TOKEN, daemon.AES_KEY, daemon.CLIENT_ID)
        status, _, body = dingd.callback(crypto.encrypt_message(RAW))
        assert status == 200, (status, body)
        [(_, cls.headers, cls.body)] = cls.plain.wait_for(1)

    def assert_does_not_verify(self, body, **changed):
        headers = {**self.lower(self.headers), **changed}
        # Not "too old": what is refused is the signature.
        with self.assertRaisesRegex(WebhookVerificationError, "No matching signature"):
            Webhook(NEW).verify(body, headers)

    @staticmethod
    def lower(headers):
        return {name.lower(): value for name, value in headers.items()}

    def test_a_delivery_verifies(self):
        event = Webhook(NEW).verify(self.body, self.headers)
        self.assertEqual(event["id"], self.lower(self.headers)["webhook-id"])

    def test_a_changed_byte_does_not_verify(self):
        for place in (0, len(self.body) // 2, len(self.body) - 1):
            # ASCII stays ASCII, so that the library is asked about a signature and not about UTF-8.
            while self.body[place] >= 0x80:
                place += 1
            changed = bytearray(self.body)
            changed[place] ^= 1
            with self.subTest(place=place):
                self.assert_does_not_verify(bytes(changed))

    def test_a_changed_id_does_not_verify(self):
        self.assert_does_not_verify(self.body, **{"webhook-id": "evt_" + "0" * 32})

    def test_a_changed_timestamp_does_not_verify(self):
        later = str(int(self.lower(self.headers)["webhook-timestamp"]) + 1)
        self.assert_does_not_verify(self.body, **{"webhook-timestamp": later})

    def test_during_a_rotation_the_new_and_the_old_key_verify_and_no_other(self):
        [(_, headers, body)] = self.rotating.wait_for(1)
        self.assertEqual(len(self.lower(headers)["webhook-signature"].split(" ")), 2)
        Webhook(NEW).verify(body, headers)
        Webhook(OLD).verify(body, headers)
        with self.assertRaises(WebhookVerificationError):
            Webhook(STRANGE).verify(body, headers)

    def test_a_repeated_delivery_has_the_same_id_and_the_same_bytes(self):
        (_, first, first_body), (_, second, second_body) = self.again.wait_for(2)
        Webhook(NEW).verify(second_body, second)
        self.assertEqual(self.lower(first)["webhook-id"], self.lower(second)["webhook-id"])
        self.assertEqual(first_body, second_body)

    def test_the_members_of_the_cloud_event_are_right(self):
        headers = self.lower(self.headers)
        self.assertEqual(headers["content-type"].split(";")[0], "application/cloudevents+json")
        event = json.loads(self.body)
        data = event.pop("data")
        time = datetime.datetime.fromisoformat(event.pop("time"))
        age = datetime.datetime.now(datetime.timezone.utc) - time
        self.assertLess(abs(age), datetime.timedelta(minutes=1))
        self.assertEqual(
            event,
            {
                "specversion": "1.0",
                "id": headers["webhook-id"],
                "source": f"/dingtalk/{daemon.CORP_ID}/{daemon.APP}",
                "type": "dingtalk.chat.renamed",
                "subject": "cidAb+cd/Ef==",
            },
        )
        self.assertEqual(data.pop("raw"), json.loads(RAW))
        self.assertEqual(
            data,
            {
                "chat": "cidAb+cd/Ef==",
                "title": "值班/🔔",
                "operator": "manager0001",
                "at": "2023-11-14T22:13:20.123Z",
            },
        )

    def test_the_library_of_cloudevents_reads_it(self):
        event = from_http(self.lower(self.headers), self.body)
        self.assertEqual(event["id"], self.lower(self.headers)["webhook-id"])
        self.assertEqual(event["type"], "dingtalk.chat.renamed")
        self.assertEqual(event.data["title"], "值班/🔔")

    def test_the_text_of_dingtalk_is_embedded_unchanged(self):
        self.assertIn(f'"raw":{RAW}}}'.encode(), self.body)


if __name__ == "__main__":
    unittest.main(verbosity=2)
