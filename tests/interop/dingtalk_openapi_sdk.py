"""The official PyPI package alibabacloud-dingtalk as a client of the simulated DingTalk."""

import json
import os
import unittest

from alibabacloud_dingtalk.card_1_0 import models as card
from alibabacloud_dingtalk.card_1_0.client import Client as Cards
from alibabacloud_dingtalk.oauth2_1_0 import models as oauth2
from alibabacloud_dingtalk.oauth2_1_0.client import Client as OAuth2
from alibabacloud_dingtalk.robot_1_0 import models as robot
from alibabacloud_dingtalk.robot_1_0.client import Client as Robots
from alibabacloud_tea_openapi import models as open_api
from alibabacloud_tea_util import models as util

import sim

# Whatever proxy the machine is set up with: the box is on this machine.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1"


class OpenApiSdk(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.sim = cls.enterClassContext(sim.Sim())
        cls.runtime = util.RuntimeOptions()
        app = oauth2.GetAccessTokenRequest(sim.CLIENT_ID, sim.CLIENT_SECRET)
        cls.token = OAuth2(cls.config()).get_access_token(app).body.access_token

    @classmethod
    def config(cls):
        return open_api.Config(protocol="http", endpoint=cls.sim.address)

    def robot_message(self, chat):
        request = robot.OrgGroupSendRequest(
            msg_key="sampleMarkdown",
            msg_param=json.dumps({"title": "P1", "text": "disk full"}),
            open_conversation_id=chat,
            robot_code=sim.CLIENT_ID,
        )
        headers = robot.OrgGroupSendHeaders(x_acs_dingtalk_access_token=self.token)
        robots = Robots(self.config())
        return robots.org_group_send_with_options(request, headers, self.runtime).body

    def create(self, out_track_id):
        request = card.CreateAndDeliverRequest(
            card_template_id="alert.schema",
            out_track_id=out_track_id,
            callback_type="STREAM",
            card_data=card.CreateAndDeliverRequestCardData({"status": "firing", "title": "P1"}),
            private_data={sim.USER: card.PrivateDataValue({"mine": "false"})},
            open_space_id=f"dtv1.card//IM_GROUP.{sim.CHAT}",
            im_group_open_space_model=card.CreateAndDeliverRequestImGroupOpenSpaceModel(
                support_forward=True
            ),
            im_group_open_deliver_model=card.CreateAndDeliverRequestImGroupOpenDeliverModel(
                robot_code=sim.CLIENT_ID
            ),
            user_id_type=1,
        )
        headers = card.CreateAndDeliverHeaders(x_acs_dingtalk_access_token=self.token)
        cards = Cards(self.config())
        return cards.create_and_deliver_with_options(request, headers, self.runtime).body

    def card(self, out_track_id):
        return next(it for it in self.sim.records("cards") if it["out_track_id"] == out_track_id)

    def test_a_group_message_arrives(self):
        answer = self.robot_message(sim.CHAT)
        message = next(it for it in self.sim.records("delivered") if it["via"] == "Group")
        self.assertEqual(message["text"], "P1\ndisk full")
        self.assertEqual(answer.process_query_key, message["handle"])

    def test_an_error_is_one_that_the_sdk_understands(self):
        with self.assertRaises(Exception) as raised:
            self.robot_message("cidNobody==")
        self.assertEqual(raised.exception.code, "invalid.openConversationId")

    def test_a_card_is_created_and_changed(self):
        answer = self.create("openapi-sdk")
        self.assertTrue(answer.success)
        [result] = answer.result.deliver_results
        self.assertTrue(result.success)
        self.assertEqual((result.space_type, result.space_id), ("IM_GROUP", sim.CHAT))
        request = card.UpdateCardRequest(
            out_track_id="openapi-sdk",
            card_data=card.UpdateCardRequestCardData({"status": "acked"}),
            card_update_options=card.UpdateCardRequestCardUpdateOptions(
                update_card_data_by_key=True
            ),
        )
        headers = card.UpdateCardHeaders(x_acs_dingtalk_access_token=self.token)
        cards = Cards(self.config())
        answer = cards.update_card_with_options(request, headers, self.runtime).body
        self.assertTrue(answer.success and answer.result)
        shown = self.card("openapi-sdk")
        self.assertEqual(shown["data"], {"status": "acked", "title": "P1"})
        self.assertEqual(shown["private_data"], {sim.USER: {"mine": "false"}})
        with self.assertRaises(Exception) as raised:
            self.create("openapi-sdk")
        self.assertEqual(raised.exception.code, "param.cardAlreadyExist")

    def test_a_route_for_clicks_is_registered(self):
        request = card.RegisterCallbackRequest(
            callback_route_key="route", callback_url="http://127.0.0.1:9/cards", api_secret="s"
        )
        headers = card.RegisterCallbackHeaders(x_acs_dingtalk_access_token=self.token)
        cards = Cards(self.config())
        answer = cards.register_callback_with_options(request, headers, self.runtime).body
        self.assertEqual(answer.result.callback_url, request.callback_url)
        route = {"key": "route", "url": request.callback_url, "signed": True}
        self.assertEqual(self.sim.records("routes"), [route])

    @classmethod
    def tearDownClass(cls):
        wrong = cls.sim.records("complaints")
        assert not wrong, wrong


if __name__ == "__main__":
    unittest.main(verbosity=2)
