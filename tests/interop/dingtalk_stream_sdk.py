"""The official PyPI package dingtalk-stream as a client of the simulated Stream gateway."""

import asyncio
import logging
import os
import threading
import time
import unittest

import dingtalk_stream
from dingtalk_stream import AckMessage

import sim

# Whatever proxy the machine is set up with: the gateway is on this machine.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1"

TOPICS = {
    "/v1.0/im/bot/messages/get": "robot",
    "/v1.0/card/instances/callback": "card",
}

# The app's answer to a click.
ANSWER = {
    "cardUpdateOptions": {"updateCardDataByKey": True, "updatePrivateDataByKey": True},
    "cardData": {"cardParamMap": {"status": "acked"}},
    "userPrivateData": {"cardParamMap": {"mine": "true"}},
}


class Events(dingtalk_stream.EventHandler):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    async def process(self, event):
        self.seen["event"].append(event)
        return AckMessage.STATUS_OK, "OK"


class Callbacks(dingtalk_stream.CallbackHandler):
    def __init__(self, seen, answer=None):
        super().__init__()
        self.seen = seen
        self.answer = answer

    async def process(self, callback):
        self.seen.append(callback)
        return AckMessage.STATUS_OK, self.answer


class Stoppable(dingtalk_stream.DingTalkStreamClient):
    """The SDK's client opens connections for ever; the keyboard is its only way out."""

    stopped = False

    def open_connection(self):
        if self.stopped:
            raise KeyboardInterrupt
        return super().open_connection()

    async def stop(self):
        self.stopped = True
        await self.websocket.close()


class Client:
    """`with Client(box, seen)` keeps the SDK connected to this box; what it is told goes into `seen`."""

    def __init__(self, box, seen):
        url = f"http://{box.address}/v1.0/gateway/connections/open"
        dingtalk_stream.DingTalkStreamClient.OPEN_CONNECTION_API = url
        # It asks the way to the internet, and there may be none.
        dingtalk_stream.DingTalkStreamClient.get_host_ip = lambda _: "127.0.0.1"
        # What it has to say would stand between the results.
        logging.getLogger("interop").setLevel(logging.CRITICAL)
        credential = dingtalk_stream.Credential(sim.CLIENT_ID, sim.CLIENT_SECRET)
        self._client = client = Stoppable(credential, logging.getLogger("interop"))
        client.register_all_event_handler(Events(seen))
        for topic, name in TOPICS.items():
            handler = Callbacks(seen[name], ANSWER if name == "card" else "ok")
            client.register_callback_handler(topic, handler)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._box = box

    def _run(self):
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._client.start())

    def __enter__(self):
        self._thread.start()
        sim.until(lambda: self._box.records("connections"), "no connection")

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._client.stop(), self._loop)
        self._thread.join()


class StreamSdkPings(unittest.TestCase):
    def test_pings_are_answered(self):
        # A ping every 2.5 s, and a second to answer it.
        seen = {"event": [], "robot": [], "card": []}
        with sim.Sim(scale=10) as box, Client(box, seen):
            time.sleep(3.8)
            [connection] = box.records("connections")
            self.assertIsNone(connection["why"], connection)
            self.assertEqual(box.records("complaints"), [])


class StreamSdk(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.sim = cls.enterClassContext(sim.Sim())
        cls.seen = {"event": [], "robot": [], "card": []}
        cls.enterClassContext(Client(cls.sim, cls.seen))

    def test_an_event_is_received_and_its_ack_taken(self):
        pushed = self.sim.do("push", event="rename", title="值班")
        self.assertEqual((pushed["settled"], pushed["tries"]), ("Done", 1), pushed)
        event = self.seen["event"][-1]
        self.assertEqual(event.headers.event_type, "chat_update_title")
        self.assertEqual(event.headers.event_id, event.data["eventId"])
        self.assertEqual(event.data["title"], "值班")
        self.assertEqual(event.data["openConversationId"], sim.CHAT)

    def test_a_robot_message_is_received_and_its_ack_taken(self):
        said = self.sim.do("say", text="ack 123")
        self.assertEqual((said["settled"], said["code"]), ("Done", 200), said)
        message = dingtalk_stream.ChatbotMessage.from_dict(self.seen["robot"][-1].data)
        self.assertEqual(message.text.content.strip(), "ack 123")
        self.assertEqual(message.conversation_id, sim.CHAT)
        self.assertEqual(message.sender_staff_id, sim.USER)
        self.assertTrue(message.session_webhook.startswith(f"http://{self.sim.address}/"))

    def test_a_click_is_received_and_its_answer_changes_the_card(self):
        self.sim.call(
            "POST",
            "/v1.0/card/instances/createAndDeliver",
            {
                "cardTemplateId": "alert.schema",
                "outTrackId": "stream-sdk",
                "callbackType": "STREAM",
                "cardData": {"cardParamMap": {"status": "firing", "title": "P1"}},
                "openSpaceId": f"dtv1.card//IM_ROBOT.{sim.USER}",
                "imRobotOpenDeliverModel": {"spaceType": "IM_ROBOT"},
            },
        )
        clicked = self.sim.do("click", card="stream-sdk", actions=["ack"], params={"n": 1})
        self.assertTrue(clicked["accepted"], clicked)
        message = dingtalk_stream.CardCallbackMessage.from_dict(self.seen["card"][-1].data)
        self.assertEqual(message.card_instance_id, "stream-sdk")
        self.assertEqual(message.user_id, sim.USER)
        inside = message.content["cardPrivateData"]
        self.assertEqual((inside["actionIds"], inside["params"]), (["ack"], {"n": 1}))
        [card] = self.sim.records("cards")
        self.assertEqual(card["data"], {"status": "acked", "title": "P1"})
        self.assertEqual(card["private_data"], {sim.USER: {"mine": "true"}})

    def test_a_lost_connection_is_opened_again(self):
        before = len(self.sim.records("connections"))
        self.assertEqual(self.sim.do("stream", do="disconnect"), {"connections": 1})
        # The SDK closes its side and comes back after a while of its own choice.
        sim.until(lambda: len(self.sim.records("connections")) > before, "no new connection")
        said = self.sim.do("say", text="again")
        self.assertEqual(said["settled"], "Done", said)

    @classmethod
    def tearDownClass(cls):
        # To an event the SDK answers with the event's own data, which the pages do not know.
        known = "an event wants the status SUCCESS or LATER"
        wrong = [it for it in cls.sim.records("complaints") if known not in it]
        assert not wrong, wrong


if __name__ == "__main__":
    unittest.main(verbosity=2)
