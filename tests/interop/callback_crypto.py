"""Callbacks that the PyPI package dingtalk-sdk encrypted, and our replies read by it."""

import itertools
import json
import secrets
import unittest

from dingtalk.crypto import DingTalkCrypto

import daemon

CHAT = "cidAb+cd/Ef=="
# The newest title by DingTalk's own time wins, so every rename needs a later one.
TIMES = itertools.count(1_700_000_000_000)


def sdk(token=daemon.CALLBACK_TOKEN, key=daemon.AES_KEY, receive_id=daemon.CLIENT_ID):
    return DingTalkCrypto(token, key, receive_id)


def rename(title):
    """The rename event as DingTalk's current pages spell it."""
    at_ms = next(TIMES)
    return {
        "EventType": "chat_update_title",
        "EventTime": at_ms,
        "CorpId": daemon.CORP_ID,
        "eventId": secrets.token_hex(16),
        "timeStamp": at_ms,
        "title": title,
        "openConversationId": CHAT,
        "operator": "manager0001",
    }


def rename_pascal(title):
    """The same event as captures of 2021 spell it."""
    return {
        "Operator": "manager0001",
        "OpenConversationId": CHAT,
        "CorpId": daemon.CORP_ID,
        "EventType": "chat_update_title",
        "Title": title,
        "TimeStamp": next(TIMES),
    }


class CallbackCrypto(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dingd = cls.enterClassContext(daemon.Daemon())

    def send(self, event, crypto=None):
        text = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
        return self.dingd.callback((crypto or sdk()).encrypt_message(text))

    def assert_success(self, answer):
        """The reply is the four texts that DingTalk wants, and the SDK reads `success` out of them."""
        status, headers, body = answer
        self.assertEqual((status, headers["content-type"]), (200, "application/json"), body)
        reply = json.loads(body)
        self.assertEqual(set(reply), {"msg_signature", "timeStamp", "nonce", "encrypt"})
        for member, value in reply.items():
            self.assertIsInstance(value, str, member)
        text = sdk().decrypt_message(
            reply, reply["msg_signature"], reply["timeStamp"], reply["nonce"]
        )
        self.assertEqual(text, "success")

    def assert_refused(self, answer):
        status, _, body = answer
        self.assertEqual((status, body), (403, b""))

    def title(self):
        chats = self.dingd.command("chats", "--state", "all")["chats"]
        return next(chat["title"] for chat in chats if chat["id"] == CHAT)

    def test_check_url_gets_a_sealed_success(self):
        self.assert_success(self.send({"EventType": "check_url"}))

    def test_a_rename_is_understood_in_both_casings(self):
        self.assert_success(self.send(rename("first")))
        self.assertEqual(self.title(), "first")
        self.assert_success(self.send(rename_pascal("second")))
        self.assertEqual(self.title(), "second")

    def test_chinese_text_arrives_as_it_was_sent(self):
        title = "值班告警群 🔔 「一级」"
        self.assert_success(self.send(rename(title)))
        self.assertEqual(self.title(), title)

    def test_every_one_of_the_32_paddings_is_accepted(self):
        paddings = set()
        for extra in range(65):
            event = {"EventType": "interop_padding", "n": extra, "filler": "x" * extra}
            text = json.dumps(event)
            # 16 random bytes, 4 of length, the text, the receive id; then 1 to 32 bytes of padding.
            paddings.add(32 - (20 + len(text) + len(daemon.CLIENT_ID)) % 32)
            with self.subTest(extra=extra):
                self.assert_success(self.send(text))
        self.assertEqual(paddings, set(range(1, 33)))

    def test_the_same_callback_again_is_answered_like_the_first(self):
        sealed = sdk().encrypt_message(json.dumps({"EventType": "interop_again"}))
        self.assert_success(self.dingd.callback(sealed))
        self.assert_success(self.dingd.callback(sealed))

    def test_a_forged_signature_is_refused_without_a_word(self):
        sealed = sdk().encrypt_message(json.dumps(rename("forged")))
        digit = "0" if sealed["msg_signature"][0] != "0" else "1"
        sealed["msg_signature"] = digit + sealed["msg_signature"][1:]
        self.assert_refused(self.dingd.callback(sealed))

    def test_a_signature_by_another_token_is_refused_without_a_word(self):
        self.assert_refused(self.send({"EventType": "check_url"}, sdk(token="another-token")))

    def test_another_encryption_key_is_refused_without_a_word(self):
        other = sdk(key=daemon.AES_KEY[::-1])
        self.assert_refused(self.send({"EventType": "check_url"}, other))

    def test_a_callback_for_another_app_is_refused_without_a_word(self):
        self.assert_refused(self.send({"EventType": "check_url"}, sdk(receive_id="dingother")))


if __name__ == "__main__":
    unittest.main(verbosity=2)
