"""Sets headers, content types and statuses, as the JSON body orders."""


def handle(data, context):
    if data is None:
        return None
    for i, row in enumerate(data):
        wanted = row["body"]
        for name, value in wanted.get("headers", {}).items():
            context.set_response_header(i, name, value)
        if "content_type" in wanted:
            context.set_response_content_type(i, wanted["content_type"])
        if "status" in wanted:
            context.set_response_status(wanted["status"], wanted.get("phrase", ""), i)
        if "status_for_all" in wanted:
            context.set_all_response_status(wanted["status_for_all"], wanted.get("phrase", ""))
        if "ask" in wanted:
            row["answer"] = [context.get_response_status(i), context.get_response_content_type(i)]
    return [row.get("answer", "decorated") for row in data]
